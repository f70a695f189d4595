# Table row "Deformable DETR" (multi-scale) (50 epochs).
_base_ = [
    '../_base_/models/deformable-detr_r50.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/deformable_detr_50e.py',
    '../_base_/default_runtime.py',
]
