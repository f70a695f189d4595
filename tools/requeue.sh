#!/usr/bin/env bash
# The batch script of slurm_train.sh with REQUEUE=1. Shortly before the time limit, or when Slurm preempts the job, the
# training saves a checkpoint and ends, and the job is queued again and resumes from it.
set -uo pipefail
asked=false step=
# shellcheck disable=SC2329  # called by the trap
ask() {
    asked=true
    # not to srun: it kills its tasks when it gets a SIGTERM
    if [ -n "$step" ]; then scancel --signal=TERM "$SLURM_JOB_ID"; fi
}
trap ask USR1 TERM
srun --kill-on-bad-exit=1 "$@" &
step=$!
if $asked; then ask; fi
while kill -0 "$step" 2> /dev/null; do # a trap ends a wait early
    wait "$step"
    status=$?
done
if $asked || [ "$status" = 75 ] || [ "$status" = 76 ]; then # 76: a machine was lost
    echo "interrupted: job $SLURM_JOB_ID is queued again"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
