# The two-stage model with the three changes that H-DETR's authors measured: no dropout, DINO's query selection, look
# forward twice (Jia et al., "DETRs with Hybrid Matching", 2023). Wider FFNs and 12 epochs, as in their code.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
attention = dict(dropout=0.0)
ffn = dict(feedforward_channels=2048, ffn_drop=0.0)
model = dict(
    mixed_query_selection=True,
    look_forward_twice=True,
    encoder=dict(layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
    decoder=dict(layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn)),
    test_cfg=dict(max_per_img=300),
)
train_cfg = dict(max_epochs=12)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11 / 12], gamma=0.1)]
