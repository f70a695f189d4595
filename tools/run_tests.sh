#!/usr/bin/env bash
# Everything that CI checks: tools/run_tests.sh [arguments for pytest]
# Installs first if needed; then ruff, mypy, the documentation site and the whole test suite.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/launch.sh

python=$(find_python)
if ! "$python" -c 'import ddetr, ddetr_ops, furo, hypothesis, mypy, myst_parser, onnxruntime, playwright, pytest, ruff, timm, transformers' 2> /dev/null; then
    bash tools/install.sh --tests
    python=$(find_python)
fi
echo '== ruff'
"$python" -m ruff check .
"$python" -m ruff format --check .
echo '== mypy'
"$python" -m mypy
echo '== docs'
bash tools/build_docs.sh
echo '== pytest'
"$python" -m pytest "$@"
