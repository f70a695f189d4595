#!/usr/bin/env bash
# 10,000 random calls of the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, for each instruction set.
#
#   bash ops/sanitize.sh [CALLS]
#
# PYTHON is the interpreter (default: python3). Builds in a temporary folder and stops at the first report.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
calls=${1:-10000}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

torch=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
cp -r ddetr_ops "$work/"
rm -f "$work"/ddetr_ops/_C*
echo 'building with sanitizers'
g++ -std=c++20 -O1 -g -fno-omit-frame-pointer -fPIC -shared -w \
  -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined \
  -DTORCH_TARGET_VERSION=0x020A000000000000 -isystem "$torch/include" csrc/*.cpp csrc/cpu/*.cpp \
  -o "$work/ddetr_ops/_C.so" -L"$torch/lib" -ltorch_cpu

for isa in widest plain; do
  echo "$calls calls, instruction set: $isa"
  LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 OMP_NUM_THREADS=2 \
    DDETR_OPS_ISA=$isa PYTHONPATH=$work "$python" fuzz.py "$calls"
done
echo 'no errors found'
