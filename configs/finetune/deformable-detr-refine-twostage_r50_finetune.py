# Two-stage Deformable DETR from a COCO checkpoint: set load_from to one of ours, the original code, MMDetection or
# Hugging Face (docs/weights.md).
_base_ = [
    '../_base_/models/deformable-detr_r50.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/finetune.py',
]
model = dict(with_box_refine=True, as_two_stage=True)
