# A small two-stage Deformable DETR on COCO, or data in its layout, without pretrained weights: what
# tools/analysis/overfit.py learns a few images by heart with. Too small for a good detector of 80 classes.
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/shapes_7e.py',
    '../_base_/default_runtime.py',
]
model = dict(num_queries=100, bbox_head=dict(num_classes=80))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 320), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
