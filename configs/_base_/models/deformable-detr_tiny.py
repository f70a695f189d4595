# A small two-stage Deformable DETR that learns the built-in dataset from random weights on two CPU cores.
_base_ = 'deformable-detr_r50.py'
attn_cfg = dict(dropout=0.0)
ffn_cfg = dict(feedforward_channels=512, ffn_drop=0.0)
model = dict(
    num_queries=20,
    with_box_refine=True,
    as_two_stage=True,
    # few different sizes: the CPU's convolutions are prepared anew for each
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        depth=18,
        num_stages=3,
        out_indices=(1, 2),
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[128, 256], bias='auto'),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=attn_cfg, ffn_cfg=ffn_cfg)),
    decoder=dict(
        num_layers=3, layer_cfg=dict(self_attn_cfg=attn_cfg, cross_attn_cfg=attn_cfg, ffn_cfg=ffn_cfg)
    ),
    bbox_head=dict(num_classes=6, loss_cls=dict(alpha=0.4, loss_weight=4.0)),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=4.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
)
