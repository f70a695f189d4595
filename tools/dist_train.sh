#!/usr/bin/env bash
# Train in several processes: tools/dist_train.sh CONFIG PROCESSES [options of tools/train.py]
# One process per GPU; without GPUs, the processes share the CPU (gloo).
# On several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR and PORT set.
# MAX_RESTARTS=3: if a process dies, restart all processes from the last checkpoint, up to three times.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/launch.sh"
launch train.py "$@"
