# A small DETR for the built-in dataset: the backbone, width, layers and queries of deformable-detr_tiny.py.
_base_ = 'detr_r50.py'
self_attn_cfg = dict(dropout=0.0)
ffn_cfg = dict(feedforward_channels=512, ffn_drop=0.0)
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),
    num_queries=20,
    backbone=dict(
        depth=18,
        num_stages=3,  # stride 16: 8 x 8 tokens of an image
        out_indices=(2,),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[256]),
    encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=self_attn_cfg, ffn_cfg=ffn_cfg)),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(self_attn_cfg=self_attn_cfg, cross_attn_cfg=self_attn_cfg, ffn_cfg=ffn_cfg),
    ),
    bbox_head=dict(num_classes=6),
)
