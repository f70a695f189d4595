# A Deformable DETR that trains a step in a fraction of a second, on the built-in shapes. The tests set data_root.
_base_ = [
    '../../configs/_base_/models/deformable-detr_r50.py',
    '../../configs/_base_/datasets/shapes_detection.py',
    '../../configs/_base_/schedules/deformable_detr_50e.py',
    '../../configs/_base_/default_runtime.py',
]
model = dict(
    num_queries=12,
    backbone=dict(depth=18, base_channels=8, frozen_stages=-1, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64], out_channels=32, norm_cfg=dict(type='GN', num_groups=4)),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=2),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64),
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32, num_heads=2),
            cross_attn_cfg=dict(embed_dims=32, num_heads=2),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64),
        ),
    ),
    positional_encoding=dict(num_feats=16),
    bbox_head=dict(num_classes=6, embed_dims=32),
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=2)
param_scheduler = [dict(type='MultiStepLR', begin=0, end=2, by_epoch=True, milestones=[1], gamma=0.1)]
default_hooks = dict(logger=dict(interval=1))
