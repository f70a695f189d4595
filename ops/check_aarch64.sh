#!/usr/bin/env bash
# Test the CPU kernels on ARM: cross-compile them for aarch64 (NEON) with their arithmetic test, a program without
# PyTorch (tests/ops/emulation/kernels_main.cpp), and run it under qemu.
#
#   bash ops/check_aarch64.sh
#
# Needs Debian's g++-aarch64-linux-gnu and qemu-user. As root, missing packages are installed with apt-get; otherwise
# the check is skipped. NATIVE=1 first runs the same program on this machine, with each of its instruction sets.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

have() { command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } > /dev/null
build() {  # COMPILER OUTPUT
  "$1" -std=c++20 -O3 -Wall -Wno-unknown-warning-option -Wno-maybe-uninitialized -fno-trapping-math -static \
    -Iops/csrc -isystem tests/ops/emulation/without_torch \
    ops/csrc/cpu/kernels_*.cpp tests/ops/emulation/kernels_main.cpp -o "$2"
}

if [ "${NATIVE:-0}" = 1 ]; then
  build "${CXX:-c++}" "$work/native"
  for isa in widest plain; do
    echo "check_aarch64: $(uname -m), instruction set: $isa"
    DDETR_OPS_ISA=$isa "$work/native"
  done
fi

if ! have && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    g++-aarch64-linux-gnu qemu-user; } > "$work/log" 2>&1 || tail -n 3 "$work/log" >&2
fi
if ! have; then
  echo 'check_aarch64: skipped, install g++-aarch64-linux-gnu and qemu-user (Debian packages) to run it'
  exit 0
fi
build aarch64-linux-gnu-g++ "$work/aarch64"
vectors=$(aarch64-linux-gnu-objdump -d "$work/aarch64" | grep -c -E '\s(fmla|fmul|fadd)\s+v[0-9]+\.(4s|2d)')
echo "check_aarch64: aarch64 under qemu, $vectors arithmetic instructions on NEON vectors"
qemu-aarch64 "$work/aarch64"
