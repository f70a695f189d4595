#!/usr/bin/env bash
# Install ddetr and the tested versions of its dependencies: tools/install.sh [--tests]
#   --tests  also install what the tests need
# Uses the active virtual environment, or creates .venv here. FORCE_CUDA=1 builds the operator's CUDA library even if no
# GPU is visible. DDETR_OPS_ALLOW_FALLBACK=0 makes a failed compilation an error. PYTHON is the interpreter for a new
# .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/launch.sh

with_tests=false
case "${1:-}" in
    --tests) with_tests=true ;;
    '') ;;
    *) sed -n '2,6s/^# //p' "$0" >&2; exit 2 ;;
esac

step() { echo "== $*"; }

if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ ! -x .venv/bin/python ]; then
    step "creating .venv with $("${PYTHON:-python3}" --version)"
    "${PYTHON:-python3}" -m venv .venv
fi
python=$(find_python)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || { echo "error: $python is $("$python" --version), ddetr needs Python 3.10 or later: set PYTHON." >&2; exit 1; }

install() { "$python" -m pip install --quiet --disable-pip-version-check -c requirements/constraints.txt "$@"; }

step "1/4 build tools, PyTorch and the other packages into $("$python" -c 'import sys; print(sys.prefix)') (about 6 GB, minutes)"
# setuptools first: source packages need it, and new environments do not have it
install setuptools
install -r requirements/runtime.txt
if $with_tests; then install -r requirements/tests.txt; fi

step '2/4 OpenCV'
if ! "$python" -c 'import cv2' 2> /dev/null; then
    # opencv-python links the libraries of a desktop; last, as other packages ask for it by that name
    step '    opencv-python does not load here (libGL is missing): opencv-python-headless takes its place'
    "$python" -m pip uninstall --quiet --yes opencv-python
    install --force-reinstall --no-deps opencv-python-headless
fi

export DDETR_OPS_ALLOW_FALLBACK=${DDETR_OPS_ALLOW_FALLBACK:-1}
step '3/4 ddetr and its op, compiled here'
if [ "$DDETR_OPS_ALLOW_FALLBACK" = 1 ]; then
    step '    DDETR_OPS_ALLOW_FALLBACK=1: where the op cannot be compiled, plain PyTorch takes its place'
fi
log=$(mktemp)
"$python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps --verbose -e ./ops -e . > "$log" 2>&1 \
    || { grep 'cannot be built' "$log" || tail -n 40 "$log"; echo "error: the installation failed; its output is in $log"; exit 1; } >&2
rm -f "$log"

step '4/4 done:'
"$python" - << 'PYTHON'
import sys

import ddetr
import torch
from ddetr_ops import _library

print(f'   ddetr {ddetr.__version__}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}')
for name, problem in (('CPU', _library.CPU_PROBLEM), ('CUDA', _library.CUDA_PROBLEM)):
    print(f'   operator, {name}: ' + ('compiled' if problem is None else f'not compiled: {problem}'))
if not torch.cuda.is_available():
    print('   (no GPU is visible; with nvcc, FORCE_CUDA=1 tools/install.sh compiles the CUDA library)')
PYTHON
if $with_tests; then
    echo '   tests: bash tools/run_tests.sh'
else
    echo '   optional: tests (tools/install.sh --tests), TensorBoard (requirements/optional.txt)'
fi
