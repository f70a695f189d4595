#!/usr/bin/env bash
# Train on a Slurm cluster: GPUS=16 tools/slurm_train.sh PARTITION JOB_NAME CONFIG [WORK_DIR] [options of tools/train.py]
# GPUS is the total number of processes and GPUS_PER_NODE (default 8, or GPUS if smaller) that of each machine; NNODES
# (default 1) may replace GPUS. CPUS_PER_TASK cores per process (default 5); SRUN_ARGS is passed to srun. REQUEUE=1
# submits a batch job that saves and is queued again GRACE seconds (default 120) before its time limit. MAX_RESTARTS
# as in dist_train.sh.
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
