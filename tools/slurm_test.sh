#!/usr/bin/env bash
# Evaluate on a Slurm cluster: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
# NNODES machines (1) with GPUS_PER_NODE processes each (8), CPUS_PER_TASK cores for each process (5), and whatever
# SRUN_ARGS adds for srun.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/launch.sh"
partition=$1 job_name=$2 config=$3 checkpoint=$4
shift 4
launch_slurm "$partition" "$job_name" dist_test.sh "$config" "$checkpoint" "${GPUS_PER_NODE:-8}" "$@"
