#!/usr/bin/env bash
# Builds the operators on a GPU machine from this source tree alone, tests them there and times them.
#
#   bash ops/gpu_check.sh [MMCV_FOLDER] > report.md
#
# Needs nvcc, a C++ compiler and a python3 that holds PyTorch 2.10 or later with CUDA, pytest and setuptools; no
# network. MMCV_FOLDER: mmcv's unpacked source distribution, to time its kernel beside ours (needs ninja).
# The report goes to standard output, the progress to standard error. SANITIZE=1 also runs the smaller tests
# under compute-sanitizer. Any step that fails ends it with that step's status.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { echo "gpu_check: $*" >&2; }

python3 - >&2 <<'PYTHON'
import sys, torch
if not torch.cuda.is_available():
    sys.exit(f'gpu_check: PyTorch {torch.__version__} sees no GPU here')
print(f'gpu_check: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}')
PYTHON
command -v nvcc >/dev/null || { say 'there is no nvcc on the PATH'; exit 1; }

say 'building for this GPU'
(cd ops && FORCE_CUDA=1 python3 setup.py -q build_ext --inplace >&2)
ls ops/ddetr_ops/_C_cuda* >/dev/null 2>&1 || { say 'the CUDA library was not built: see the messages above'; exit 1; }

export PYTHONPATH="$PWD/ops${PYTHONPATH:+:$PYTHONPATH}"
say 'testing'
# Without the project's conftest.py: it needs more than PyTorch.
python3 -m pytest --noconftest -p no:cacheprovider -q tests/ops/test_cuda.py >&2
if [ "${SANITIZE:-0}" = 1 ]; then
  say 'testing under compute-sanitizer'
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 9 \
    python3 -m pytest --noconftest -p no:cacheprovider -q tests/ops/test_cuda.py -k 'equal_float64 and not really' >&2
fi

say 'timing'
python3 ops/gpu_benchmark.py ${1:+--mmcv "$1"}
say 'done'
