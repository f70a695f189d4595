# DINO with 5 feature levels, from stride 4 to 64, 12 epochs.
_base_ = 'dino-4scale_r50_8xb2-12e_coco.py'
model = dict(
    num_feature_levels=5,
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[256, 512, 1024, 2048], num_outs=5),
)
