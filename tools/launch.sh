# Sourced by dist_*.sh and slurm_*.sh.

# The Python that has ddetr: that of the active environment, or of .venv.
find_python() {
    local root
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$root/.venv/bin/python" ]; then
        echo "$root/.venv/bin/python"
    else
        command -v python || command -v python3
    fi
}

# launch SCRIPT CONFIG PROCESSES [arguments...]: start PROCESSES processes of tools/SCRIPT on this machine (launch.py).
launch() {
    local tools
    tools=$(dirname "${BASH_SOURCE[0]}")
    # without this every process would take all cores
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) / $3 > 1 ? $(nproc) / $3 : 1))}
    export LAUNCHED_AT=${LAUNCHED_AT:-$(date +%s)} # a restart goes on from checkpoints that are newer
    # exec: a signal to this script reaches the training
    exec "$(find_python)" "$tools/launch.py" "$tools/$1" "${@:2}"
}

# Compute NNODES and GPUS_PER_NODE from GPUS, the total number of processes, if it is set.
set_slurm_size() {
    GPUS_PER_NODE=${GPUS_PER_NODE:-8}
    [ -n "${GPUS:-}" ] || return 0
    if [ "$GPUS" -lt "$GPUS_PER_NODE" ]; then GPUS_PER_NODE=$GPUS; fi
    if [ $((GPUS % GPUS_PER_NODE)) -ne 0 ]; then
        echo "error: GPUS=$GPUS is not a multiple of GPUS_PER_NODE=$GPUS_PER_NODE; all machines run the same number of processes." >&2
        exit 2
    fi
    NNODES=$((GPUS / GPUS_PER_NODE))
}

# launch_slurm PARTITION JOB_NAME SCRIPT ARGUMENTS...: start one task per machine, which starts the processes of
# tools/SCRIPT there.
launch_slurm() {
    local partition=$1 job_name=$2 script=$3 nodes=${NNODES:-1} processes=${GPUS_PER_NODE:-8}
    shift 3
    local tools
    tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    local job=(-p "$partition" --job-name "$job_name" --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1
        --gres "gpu:$processes" --cpus-per-task $((processes * ${CPUS_PER_TASK:-5})))
    # the first machine of the job is where all meet; the port differs between jobs that share a machine
    # shellcheck disable=SC2016  # these variables exist in the job, not here
    local task=(bash -c '
            export NNODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID
            export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
            export PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
            exec bash "$0" "$@"' "$tools/$script")
    export LAUNCHED_AT=${LAUNCHED_AT:-$(date +%s)}
    # shellcheck disable=SC2086  # SRUN_ARGS is several words
    if [ -n "${REQUEUE:-}" ]; then
        export GRACE=${GRACE:-120} # also the time that the processes have to save (launch.py)
        sbatch "${job[@]}" --requeue --open-mode append --signal "B:USR1@$GRACE" ${SRUN_ARGS:-} \
            "$tools/requeue.sh" "${task[@]}" "$@"
    else
        srun "${job[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${task[@]}" "$@"
    fi
}
