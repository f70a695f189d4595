# ConvNeXt-T (Liu et al., 2022) as the backbone; no row of the paper's table. Layer decay as in MMDetection's
# mask-rcnn_convnext-t: 0.95 over the stem and six layers. Drop path 0.1 is that of the ImageNet training; the 0.4 there
# goes with stronger augmentation. AdamW and the backbone's learning rate (x 0.1) stay Deformable DETR's.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='TimmBackbone',
        model_name='convnext_tiny.fb_in1k',
        pretrained=True,  # or checkpoint='FILE', see docs/backbones.md
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=None),  # the backbone's
)
optim_wrapper = dict(
    constructor='LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(decay_rate=0.95, num_layers=6)
)
