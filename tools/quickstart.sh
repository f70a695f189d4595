#!/usr/bin/env bash
# Train a first detector: tools/quickstart.sh
# Installs ddetr if needed, draws a small dataset, trains a two-stage Deformable DETR on it, evaluates it on held-out
# images, and draws detections and curves. Takes about 15 minutes on 2 CPU cores.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/launch.sh

config=configs/quickstart/deformable-detr-refine-twostage_shapes.py
work_dir=work_dirs/quickstart
pictures=8

python=$(find_python)
if ! "$python" -c 'import ddetr, ddetr_ops' 2> /dev/null; then
    bash tools/install.sh
    python=$(find_python)
fi

echo '== data: drawing shapes'
"$python" tools/make_shapes.py data/shapes

echo "== training: $config"
# PyTorch's threads wait actively: a quarter faster if nothing else runs
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-active}
precision=()
if grep -q -m 1 -E 'avx512_bf16|amx_bf16' /proc/cpuinfo 2> /dev/null; then
    precision=(--amp) # in hardware: a fifth less time
fi
"$python" tools/train.py "$config" --work-dir "$work_dir" "${precision[@]}"

echo '== evaluation on held-out images'
checkpoint=$(cat "$work_dir/last_checkpoint")
table=$work_dir/table.txt
"$python" tools/test.py "$config" "$checkpoint" --work-dir "$work_dir/test" --out "$work_dir/detections.json" | tee "$table"

echo '== pictures'
mkdir -p "$work_dir/samples"
find data/shapes/val2017 -name '*.jpg' | sort | head -n "$pictures" | xargs -I{} cp {} "$work_dir/samples"
"$python" demo/image_demo.py "$work_dir/samples" "$config" "$checkpoint" --out-dir "$work_dir/pictures" --score-thr 0.4
"$python" tools/analysis/plot_curves.py "$work_dir" --out "$work_dir/pictures/curves.png"

echo
echo '== results on held-out images'
grep -E 'Average (Precision|Recall)' "$table"
echo "detections:  $work_dir/detections.json"
echo "checkpoint:  $checkpoint"
echo "curves:      $work_dir/curves.html"
echo 'pictures:'
ls "$work_dir"/pictures/*.[jp][pn]g
