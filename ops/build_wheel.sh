#!/usr/bin/env bash
# Build the source distribution of ddetr_ops, and from it a wheel for this platform. The wheel works with Python 3.10
# and PyTorch 2.10 or later.
#
#   bash ops/build_wheel.sh [FOLDER]      (default: ops/dist)
#
# FORCE_CUDA and TORCH_CUDA_ARCH_LIST are described in README.md, "Install"; a wheel with the CUDA library also works
# with CPU builds of PyTorch. PYTHON is the interpreter (default: python3) and needs torch and setuptools. README.md
# describes auditwheel, for wheels that run on other Linux distributions.
set -euo pipefail
export DDETR_OPS_ALLOW_FALLBACK=0  # a wheel without its library is none
out=$(realpath -m "${1:-$(dirname "$0")/dist}")
cd "$(dirname "$0")"
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# Build from a copy, so that files of earlier builds are not included and none are left behind.
mkdir -p "$work/ops/ddetr_ops/compat"
cp -r setup.py op_build.py pyproject.toml MANIFEST.in LICENSE README.md csrc "$work/ops/"
cp ddetr_ops/*.py ddetr_ops/py.typed "$work/ops/ddetr_ops/"
cp ddetr_ops/compat/*.py "$work/ops/ddetr_ops/compat/"
(cd "$work/ops" && "$python" -c 'from setuptools import build_meta; build_meta.build_sdist("dist")') > "$work/log" 2>&1 \
  || { cat "$work/log" >&2; exit 1; }
sdist=$(ls "$work"/ops/dist/*.tar.gz)
"$python" -m pip wheel -q --no-deps --no-build-isolation --no-cache-dir -w "$work/dist" "$sdist"

wheel=$(ls "$work"/dist/*.whl)
cp "$sdist" "$wheel" "$out/"
echo "$out/$(basename "$sdist")"
echo "$out/$(basename "$wheel")"
