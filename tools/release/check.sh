#!/usr/bin/env bash
# Use the built wheels as a stranger would: tools/release/check.sh [FOLDER]
#
#   FOLDER (default: dist): what tools/release/build.sh wrote. In a new virtual environment and an empty folder, with no
#   repository around: pip install, then `ddetr env`, `configs`, a short training of the quickstart's config on drawn
#   shapes, `test`, `predict` and `export`. Downloads about 3 GB and takes 6 GB of disk, in the folder TMPDIR; both are
#   removed at the end.
#
# PYTHON: the interpreter for the environment (default: python3). EXTRAS: extras to install, such as `export`, which
# `ddetr export` needs; without it that step is left out, which is said.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=$(realpath "${1:-dist}")
constraints=$(realpath requirements/constraints.txt)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
cd "$work"
step() { echo "== $*"; "$@"; }

echo "== a new environment, $dist/*.whl${EXTRAS:+ with $EXTRAS}"
"${PYTHON:-python3}" -m venv venv
export PATH=$work/venv/bin:$PATH
install() { python -m pip install -q --disable-pip-version-check --no-cache-dir -c "$constraints" "$@"; }
install "$(ls "$dist"/ddetr_ops-*.whl)" "$(ls "$dist"/ddetr-*.whl)${EXTRAS:+[$EXTRAS]}"
python -m pip check
if ! python -c 'import cv2' 2> /dev/null; then # no desktop's libraries here, as tools/install.sh does
    python -m pip uninstall -q -y opencv-python
    install --no-deps opencv-python-headless
fi

mkdir empty && cd empty
step ddetr --version
step ddetr env
ddetr configs > configs.txt
echo "== ddetr configs: $(grep -c '^  ' configs.txt) configs"
grep -q deformable-detr-refine-twostage_shapes configs.txt
python - << 'PYTHON'
from ddetr.datasets.shapes import ShapesRecipe, make_shapes

make_shapes('data/shapes', ShapesRecipe(num_train=16, num_val=4, size=128))
PYTHON
step ddetr train deformable-detr-refine-twostage_shapes --work-dir run --cfg-options train_cfg.max_epochs=1 \
    train_dataloader.num_workers=0 train_dataloader.persistent_workers=False
step ddetr test run --work-dir tested --out detections.json --cfg-options test_dataloader.num_workers=0 \
    test_dataloader.persistent_workers=False
step ddetr predict data/shapes/val2017 --checkpoint run --out-dir predictions --score-thr 0 --formats picture json
[ "$(ls predictions/*.json | wc -l)" = 4 ] || { echo 'error: 4 images, but not 4 results' >&2; exit 1; }
if ! ddetr export --help > /dev/null 2>&1; then
    echo '== ddetr export: LEFT OUT, this version has no such command'
elif [[ ",${EXTRAS:-}," != *,export,* && ",${EXTRAS:-}," != *,all,* ]]; then
    echo '== ddetr export: LEFT OUT, needs EXTRAS=export'
else
    step ddetr export run --to onnx --out model.onnx --images "$(ls data/shapes/val2017/*.jpg | head -n 1)"
fi
echo '== the wheels work'
