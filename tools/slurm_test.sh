#!/usr/bin/env bash
# Evaluate on a Slurm cluster: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# GPUS, GPUS_PER_NODE, NNODES, CPUS_PER_TASK and SRUN_ARGS as for tools/slurm_train.sh.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/launch.sh"
partition=$1 job_name=$2 config=$3 checkpoint=$4
shift 4
set_slurm_size
launch_slurm "$partition" "$job_name" dist_test.sh "$config" "$checkpoint" "$GPUS_PER_NODE" "$@"
