# Swin-T (Liu et al., 2021) as the backbone. Drop path 0.2 and no other change of the recipe, as in MMDetection's
# dino-5scale_swin-l: AdamW, the backbone's learning rate x 0.1.
_base_ = 'dino-4scale_r50_8xb2-12e_coco.py'
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
