# Table row "DETR" (500 epochs).
_base_ = [
    '../_base_/models/detr_r50.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/detr_500e.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
