# A small Faster R-CNN for the built-in dataset, with the backbone of deformable-detr_tiny.py.
_base_ = 'faster-rcnn_r50_fpn.py'
model = dict(
    backbone=dict(
        depth=18, num_stages=3, out_indices=(0, 1, 2), frozen_stages=-1, norm_eval=False, init_cfg=None
    ),
    neck=dict(in_channels=[64, 128, 256], out_channels=128, num_outs=4),
    rpn_head=dict(
        in_channels=128,
        feat_channels=128,
        anchor_generator=dict(strides=[4, 8, 16, 32], scales=[4]),  # squares of 16 to 128 pixels
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(sampling_ratio=2), out_channels=128, featmap_strides=[4, 8, 16], finest_scale=28
        ),
        bbox_head=dict(in_channels=128, fc_out_channels=256, num_classes=6),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
