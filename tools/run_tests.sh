#!/usr/bin/env bash
# Run what CI checks: tools/run_tests.sh [--fast | --lint] [arguments for pytest]
# Installs the dependencies if needed, then runs ruff, mypy, the documentation build and all tests.
#   --fast  only ruff and the tests in tests/fast_tier.txt
#   --lint  only ruff, mypy and the schemas of the repository's files
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/launch.sh

tier=all
case "${1:-}" in
    --fast) tier=fast; shift ;;
    --lint) tier=lint; shift ;;
esac
python=$(find_python)
needed='check_jsonschema ddetr ddetr_ops furo hypothesis mypy myst_parser onnxruntime playwright pytest ruff timm transformers xdist'
if ! "$python" -c 'import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))' $needed; then
    bash tools/install.sh --tests
    python=$(find_python)
fi
echo '== ruff'
"$python" -m ruff check .
"$python" -m ruff format --check .
if [ "$tier" = fast ]; then
    echo '== pytest, fast tier'
    grep -v '^#' tests/fast_tier.txt | tr '\n' '\0' | OMP_NUM_THREADS=1 \
        xargs -0 "$python" -m pytest --durations=5 --numprocesses "${WORKERS:-2}" --dist loadfile "$@"
    exit
fi
echo '== mypy'
"$python" -m mypy
if [ "$tier" = lint ]; then
    "$python" -m pytest --durations=0 tests/test_repository.py
    exit
fi
echo '== docs'
bash tools/build_docs.sh
echo '== pytest'
# two processes with one thread each; tests/cluster emulates several machines and runs alone
if [ $# -gt 0 ]; then
    "$python" -m pytest "$@"
else
    OMP_NUM_THREADS=1 "$python" -m pytest --numprocesses "${WORKERS:-2}" --dist loadfile --ignore tests/cluster
    "$python" -m pytest tests/cluster
fi
