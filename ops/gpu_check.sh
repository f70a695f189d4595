#!/usr/bin/env bash
# Build the operators on a GPU machine from this source tree, test them, run the sanitizers and the benchmark.
#
#   bash ops/gpu_check.sh [MMCV_FOLDER] > report.md
#
# Needs nvcc, a C++ compiler and a python3 with PyTorch 2.10 or later with CUDA, pytest and setuptools; no network.
# compute-sanitizer is part of the CUDA toolkit. MMCV_FOLDER is mmcv's unpacked source distribution, whose kernels are
# benchmarked for comparison (needs ninja).
#
# The report is written to standard output: machine, benchmark, the last lines of every failed part and a table of all
# parts. Progress is written to standard error. If a part fails or takes longer than PART_SECONDS (default 1200), the
# others still run, except after a failed build. Exit status: 0 if all parts passed.
set -uo pipefail
cd "$(dirname "$0")/.."
mmcv=${1:-}
work=$(mktemp -d)
rows=()
failed=0

finish() {
  printf '\n## Parts\n\n| part | result | seconds |\n|---|---|---:|\n'
  printf '%s\n' "${rows[@]}"
  rm -rf "$work"
  exit $((failed > 0))
}
trap finish EXIT
trap 'failed=1; rows+=("| interrupted | failed | |"); exit' INT TERM

# part NAME COMMAND...: run a command, copy its output to $work/log and standard error, and record the result.
part() {
  local name=$1 status begin=$SECONDS result=passed
  shift
  echo "gpu_check: $name" >&2
  timeout --kill-after=30 "${PART_SECONDS:-1200}" "$@" 2>&1 | tee "$work/log" >&2
  status=${PIPESTATUS[0]}
  if [ "$status" != 0 ]; then
    failed=1
    result="failed ($status)"
    printf '\n## Failed: %s\n\n```\n%s\n```\n' "$name" "$(tail -n 25 "$work/log")"
  fi
  rows+=("| $name | $result | $((SECONDS - begin)) |")
  return "$status"
}

cat > "$work/head.py" <<'PYTHON'
import platform, subprocess, sys
import torch
driver = subprocess.run(['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'], capture_output=True, text=True)
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(f'- GPU: {", ".join(names) or "none"}')
print(f'- driver: {driver.stdout.splitlines()[0] if driver.stdout else "unknown"}')
print(f'- PyTorch {torch.__version__}, built with CUDA {torch.version.cuda}; Python {platform.python_version()}')
sys.exit(0 if names else f'PyTorch {torch.__version__} sees no GPU')
PYTHON

build() {
  rm -f ops/ddetr_ops/_C_cuda*
  (cd ops && FORCE_CUDA=1 python3 setup.py -q build_ext --inplace) || return
  compgen -G 'ops/ddetr_ops/_C_cuda*' > "$work/library" || {
    echo 'setup.py built no ops/ddetr_ops/_C_cuda*: see the messages above'
    return 1
  }
}
export -f build
export work

printf '# ddetr_ops on a GPU\n\n'
part 'machine' python3 "$work/head.py"
cat "$work/log"
echo "- nvcc: $(nvcc --version 2>/dev/null | grep -o 'release [0-9.]*' || echo 'not found')"
echo "- commit: $(git rev-parse --short HEAD 2>/dev/null || echo 'unknown')"

part 'build' bash -c build || exit

export PYTHONPATH="$PWD/ops${PYTHONPATH:+:$PYTHONPATH}"
# The project's conftest.py needs more than PyTorch, so leave it out.
pytest=(python3 -m pytest --noconftest -p no:cacheprovider -q)
part 'tests' "${pytest[@]}" tests/ops/test_cuda.py

sanitize() {  # TOOL TEST
  part "$1: $2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
    "${pytest[@]}" "tests/ops/test_cuda.py::$2"
}
sanitize memcheck test_small_cases_for_the_sanitizers
sanitize racecheck test_small_cases_for_the_sanitizers
sanitize synccheck test_small_cases_for_the_sanitizers
sanitize memcheck test_merging_1030_queries_for_the_sanitizers

printf '\n## Benchmark\n\n'
part 'benchmark' python3 ops/gpu_benchmark.py ${mmcv:+--mmcv "$mmcv"}
grep -v '^Traceback' "$work/log" || true
