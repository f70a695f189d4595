#!/usr/bin/env bash
# Build and check all release artefacts from the last commit: tools/release/build.sh [FOLDER]
#
#   Writes the source distributions and wheels of ddetr and ddetr-ops to FOLDER (default: dist), and RELEASE_NOTES.md,
#   the changelog's section for this version. Uploads nothing.
#
# PYTHON is the interpreter (default: that of the active environment, or .venv's) and needs torch, setuptools>=77 and
# twine (requirements/release.txt). The operator's wheel is for this platform; .github/workflows/wheels.yml builds the
# others. Then run tools/release/check.sh, which installs the wheels into an empty environment and uses them.
set -euo pipefail
cd "$(dirname "$0")/../.."
source tools/launch.sh
python=${PYTHON:-$(find_python)}
out=$(realpath -m "${1:-dist}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "error: $*" >&2; exit 1; }

"$python" -c 'import setuptools, torch, twine' 2> /dev/null \
    || fail "$python lacks torch, setuptools or twine: pip install -r requirements/release.txt"
[ -z "$(git status --porcelain --untracked-files=no)" ] || fail 'there are uncommitted changes: commit them first'
if [ -e "$out" ] && [ -n "$(ls -A "$out")" ]; then fail "$out is not empty: name a new folder"; fi

echo '== source tree of the last commit'
git archive HEAD | tar -x -C "$work"
mkdir "$work/dist"
version=$("$python" tools/release/notes.py "$work" "$work/dist/RELEASE_NOTES.md")
echo "   ddetr $version"

echo '== ddetr-ops'
PYTHON=$python bash "$work/ops/build_wheel.sh" "$work/dist"

echo '== ddetr'
# build the wheel from the source distribution, as pip does
(cd "$work" && "$python" -c 'from setuptools import build_meta; build_meta.build_sdist("dist")') > "$work/log" 2>&1 \
    || { cat "$work/log" >&2; fail 'cannot build the source distribution'; }
"$python" -m pip wheel -q --no-deps --no-build-isolation --no-cache-dir -w "$work/dist" "$work/dist/ddetr-$version.tar.gz"

echo '== twine check'
"$python" -m twine check --strict "$work"/dist/*.tar.gz "$work"/dist/*.whl

mkdir -p "$out"
mv "$work"/dist/* "$out/"
ls "$out"
