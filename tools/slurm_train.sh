#!/usr/bin/env bash
# Train on a Slurm cluster: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# NNODES machines (1) with GPUS_PER_NODE processes each (8), CPUS_PER_TASK cores
# for each process (5), and whatever SRUN_ARGS adds for srun.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/launch.sh"
partition=$1 job_name=$2 config=$3
shift 3
launch_slurm "$partition" "$job_name" dist_train.sh "$config" "${GPUS_PER_NODE:-8}" "$@"
