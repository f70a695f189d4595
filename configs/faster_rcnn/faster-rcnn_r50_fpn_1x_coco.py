# The usual baseline: 12 epochs at one scale. Not a row of the Deformable DETR table, see the 109-epoch config.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]
