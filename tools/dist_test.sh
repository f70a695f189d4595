#!/usr/bin/env bash
# Evaluate in several processes: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [options of tools/test.py]
# One process per GPU; without GPUs, the processes share the CPU (gloo).
# On several machines: run it on each, with NNODES, NODE_RANK (0, 1, ...), MASTER_ADDR and PORT set.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
source "$(dirname "$0")/launch.sh"
config=$1 checkpoint=$2 processes=$3
shift 3
launch test.py "$config" "$processes" "$checkpoint" "$@"
