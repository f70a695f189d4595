#!/usr/bin/env bash
# Use the built wheels as a user would: tools/release/check.sh [FOLDER]
#
#   FOLDER (default: dist) is the output of tools/release/build.sh. In a new virtual environment and an empty folder
#   outside the repository: pip install, `ddetr env`, `ddetr configs`, a short training of the quickstart's config on
#   drawn shapes, `ddetr test`, `ddetr predict` and `ddetr export`. Downloads about 3 GB and uses 6 GB in TMPDIR, all
#   of which is removed at the end.
#
# PYTHON is the interpreter for the environment (default: python3). EXTRAS are extras to install, such as `export`,
# which `ddetr export` needs; without it, that step is skipped with a message.
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
[ "$(ls predictions/*.json | wc -l)" = 4 ] || { echo 'error: expected 4 results for 4 images' >&2; exit 1; }
if [[ ",${EXTRAS:-}," != *,export,* && ",${EXTRAS:-}," != *,all,* ]]; then
    echo '== ddetr export: skipped, needs EXTRAS=export'
else
    # hardly trained, so scores are low
    step ddetr export run --to onnx --out model.onnx --min-score 0 --images "$(ls data/shapes/val2017/*.jpg | head -n 1)"
fi
echo '== the wheels work'
