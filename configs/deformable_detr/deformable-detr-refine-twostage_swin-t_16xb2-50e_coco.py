# Swin-T (Liu et al., 2021) as the backbone; no row of the paper's table. Drop path 0.2 as in MMDetection's detectors on
# Swin (dino-5scale_swin-l, mask-rcnn_swin-t); AdamW and the backbone's learning rate (x 0.1) stay Deformable DETR's.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='TimmBackbone',
        model_name='swin_tiny_patch4_window7_224.ms_in1k',
        pretrained=True,  # or checkpoint='FILE', see docs/backbones.md
        drop_path_rate=0.2,
    ),
    neck=dict(in_channels=None),  # the backbone's
)
