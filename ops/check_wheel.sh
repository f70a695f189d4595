#!/usr/bin/env bash
# Does a wheel built here run under another PyTorch? Makes a new environment, installs the wheel and that PyTorch into
# it, runs the op's tests there, and removes it.
#
#   bash ops/check_wheel.sh [WHEEL] [PYTORCH]      (default: a wheel built now, torch==2.13.0)
#
# PYTHON: the interpreter (default: python3). Where pip's index has no CPU build of PyTorch, set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

wheel=${1:-$(PYTHON=$python bash ops/build_wheel.sh "$work/dist" | tail -1)}
pytorch=${2:-torch==2.13.0}
"$python" -m venv "$work/venv"
echo "check_wheel: installing $pytorch and $(basename "$wheel")"
"$work/venv/bin/python" -m pip install -q "$pytorch" numpy pytest hypothesis
"$work/venv/bin/python" -m pip install -q --no-deps "$wheel"

# The tests without the project around them: its conftest.py wants more than PyTorch, and ops/ must not be found.
mkdir -p "$work/tests"
cp -r tests/ops "$work/tests/"
touch "$work/tests/__init__.py"
cd "$work"
venv/bin/python - "$(sed 's/.*==//' <<<"$pytorch")" <<'PYTHON'
import sys, torch, ddetr_ops._library as library
assert torch.__version__.startswith(sys.argv[1]), torch.__version__
assert 'venv' in library.__file__, library.__file__
assert library.CPU_PROBLEM is None, library.CPU_PROBLEM
print(f'check_wheel: {library._FOLDER} runs under PyTorch {torch.__version__}')
PYTHON
venv/bin/python -m pytest -q -p no:cacheprovider tests/ops/test_functional.py tests/ops/test_registrations.py tests/ops/compat
