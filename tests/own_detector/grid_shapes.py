# A detector of one's own on the built-in shapes: docs/add_a_detector.md.
_base_ = [
    '../../configs/_base_/datasets/shapes_detection.py',
    '../../configs/_base_/schedules/shapes_7e.py',
    '../../configs/_base_/default_runtime.py',
]
custom_imports = dict(imports=['grid_detector'])
model = dict(
    type='GridDetector',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[64.0] * 3, pad_size_divisor=16),
    backbone=dict(type='FourConvs', width=32),
    bbox_head=dict(type='GridHead', num_classes=6),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
)
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=2, val_interval=1)
