# DINO with 4 feature levels, 12 epochs.
_base_ = [
    '../_base_/models/dino_r50.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/dino_12e.py',
    '../_base_/default_runtime.py',
]
