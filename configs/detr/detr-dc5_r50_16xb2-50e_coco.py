# Table row "DETR-DC5" (50 epochs).
_base_ = [
    '../_base_/models/detr_r50.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/detr_50e.py',
    '../_base_/default_runtime.py',
]
model = dict(backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))
