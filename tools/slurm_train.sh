#!/usr/bin/env bash
# Train on a Slurm cluster: GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of tools/train.py]
# GPUS processes in all, GPUS_PER_NODE on each machine (8, or GPUS if that is less); or NNODES machines (1) in place of
# GPUS. CPUS_PER_TASK cores for each process (5), and whatever SRUN_ARGS adds for srun. REQUEUE=1 submits a batch job that
# ends GRACE seconds (120) before its time limit with a checkpoint, is queued again and goes on. MAX_RESTARTS: dist_train.sh.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/launch.sh"
partition=$1 job_name=$2 config=$3
shift 3
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then # as in MMDetection's call
    work_dir=$1
    shift
    set -- --work-dir "$work_dir" "$@"
fi
set_slurm_size
launch_slurm "$partition" "$job_name" dist_train.sh "$config" "$GPUS_PER_NODE" "$@"
