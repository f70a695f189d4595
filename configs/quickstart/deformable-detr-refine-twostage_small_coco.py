# A small two-stage Deformable DETR on COCO, or data in its layout, without pretrained weights: what
# tools/analysis/diagnose.py --overfit learns a few images with. Too small for a good detector of 80 classes.
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/shapes_7e.py',
    '../_base_/default_runtime.py',
]
model = dict(num_queries=100, mixed_query_selection=True, bbox_head=dict(num_classes=80))
resize = dict(type='Resize', scale=(320, 320), keep_ratio=True)
train_pipeline = [{{_base_.load_image}}, {{_base_.load_boxes}}, {{_base_.flip}}, resize, {{_base_.pack}}]
test_pipeline = [{{_base_.load_image}}, resize, {{_base_.load_boxes}}, {{_base_.pack}}]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
