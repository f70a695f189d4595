#!/usr/bin/env bash
# Build the documentation site into docs/_build: tools/build_docs.sh [folder]
# Needs requirements/docs.txt but no network. Warnings are errors.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/launch.sh

"$(find_python)" -m sphinx --fail-on-warning --keep-going --quiet --write-all -b html docs "${1:-docs/_build}"
echo "built: ${1:-docs/_build}/index.html"
