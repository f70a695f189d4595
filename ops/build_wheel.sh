#!/usr/bin/env bash
# Builds the wheel of ddetr_ops: one file for CPython 3.10 and later and PyTorch 2.10 and later.
#
#   bash ops/build_wheel.sh [FOLDER]      (default: ops/dist)
#
# The CUDA library goes in where nvcc is and a GPU is visible or FORCE_CUDA=1 (TORCH_CUDA_ARCH_LIST chooses the GPUs);
# that wheel serves PyTorch's CPU builds too. PYTHON: the interpreter (default: python3), with torch, setuptools, wheel.
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/dist}")
cd "$(dirname "$0")"
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a copy: what an earlier build left in the tree must not get in.
mkdir "$work/ops"
cp -r setup.py op_build.py csrc "$work/ops/"
mkdir -p "$work/ops/ddetr_ops/compat" "$out"
cp ddetr_ops/*.py "$work/ops/ddetr_ops/"
cp ddetr_ops/compat/*.py "$work/ops/ddetr_ops/compat/"
cp README.md "$work/ops/" 2>/dev/null || true
"$python" -m pip wheel -q --no-deps --no-build-isolation -w "$work/dist" "$work/ops"

wheel=$(ls "$work"/dist/*.whl)
names=$("$python" -m zipfile -l "$wheel")
grep -q 'ddetr_ops/_C.abi3.so' <<<"$names" || { echo 'build_wheel: the CPU library was not built; see pip -v' >&2; exit 1; }
case $wheel in *-cp310-abi3-*) ;; *) echo "build_wheel: $wheel is not a cp310-abi3 wheel" >&2; exit 1 ;; esac
if [ "${FORCE_CUDA:-}" = 1 ] && ! grep -q 'ddetr_ops/_C_cuda.abi3.so' <<<"$names"; then
  echo 'build_wheel: FORCE_CUDA=1, but the CUDA library was not built; see pip -v' >&2
  exit 1
fi
cp "$wheel" "$out/"
echo "$out/$(basename "$wheel")"
