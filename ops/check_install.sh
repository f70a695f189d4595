#!/usr/bin/env bash
# Install ddetr_ops as a user would, from its source distribution and from its wheel, into new virtual environments
# outside the repository.
#
#   bash ops/check_install.sh [PYTORCH]      (default: torch==2.13.0)
#
#   1. the source distribution with build isolation: pip installs PYTORCH to build and to run; then a training step
#   2. the same with --no-build-isolation and without a compiler: the install fails and names the cause
#   3. with DDETR_OPS_ALLOW_FALLBACK=1: it succeeds, and the warning at the first call names the cause
#   4. the wheel, built with PYTHON's PyTorch: a training step and the operator's tests with PYTORCH
#
# PYTHON is the interpreter (default: python3) and needs torch and setuptools to build the wheel. If pip would install a
# CUDA build of PYTORCH, which takes gigabytes, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
pytorch=${1:-torch==2.13.0}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say() { echo "check_install: $*"; }
fail() { say "$*"; tail -n 20 "$work/log"; exit 1; } >&2

say 'building the source distribution and the wheel'
PYTHON=$python bash ops/build_wheel.sh "$work/dist" > "$work/log" 2>&1 || fail 'they could not be built'
sdist=$(ls "$work"/dist/*.tar.gz)
wheel=$(ls "$work"/dist/*.whl)
mkdir -p "$work/tests"
cp -r tests/ops "$work/tests/"
touch "$work/tests/__init__.py"

cd "$work"
"$python" -m venv venv
# Build and run with the same PyTorch; newer versions of pip read the second variable.
echo "$pytorch" > constraints.txt
export PIP_CONSTRAINT=$work/constraints.txt PIP_BUILD_CONSTRAINT=$work/constraints.txt
export FORCE_CUDA=0
unset PYTHONPATH DDETR_OPS_ALLOW_FALLBACK
install() { venv/bin/python -m pip install --no-cache-dir --force-reinstall "$@" > log 2>&1; }

say "installing $(basename "$sdist"), isolated, with $pytorch"
install "$sdist" || fail 'the install failed'
venv/bin/python tests/ops/train_step.py

say 'without a compiler, not isolated'
install 'setuptools>=77' || fail 'setuptools could not be installed'
if PATH=$work/venv/bin install --no-build-isolation --no-deps "$sdist"; then fail 'the install succeeded without a compiler'; fi
grep -m 1 "cannot be built. There is no C++ compiler 'c++'" log || fail 'the message does not name the cause'

say 'with DDETR_OPS_ALLOW_FALLBACK=1'
PATH=$work/venv/bin DDETR_OPS_ALLOW_FALLBACK=1 install --no-build-isolation --no-deps "$sdist" || fail 'the install failed'
venv/bin/python -W always - 2> log <<'PYTHON' || fail 'the fallback does not compute'
import torch, ddetr_ops
value = torch.rand(1, 4, 2, 8, requires_grad=True)
ddetr_ops.ms_deform_attn(value, torch.tensor([[2, 2]]), torch.tensor([0]), torch.rand(1, 3, 2, 1, 4, 2),
                         torch.rand(1, 3, 2, 1, 4)).sum().backward()
PYTHON
grep -m 1 "plain PyTorch on cpu.* There is no C++ compiler 'c++'" log || fail 'the warning does not name the cause'

say "installing $(basename "$wheel")"
install --no-deps "$wheel" || fail 'the wheel could not be installed'
venv/bin/python -m pip install -q numpy pytest hypothesis > log 2>&1 || fail 'pytest could not be installed'
venv/bin/python tests/ops/train_step.py
# Copy the tests: the project's conftest.py needs more than PyTorch, and ops/ must not be importable.
venv/bin/python -m pytest -q -p no:cacheprovider tests/ops/test_functional.py tests/ops/test_nonfinite.py \
  tests/ops/test_registrations.py tests/ops/compat
