# Computes what torchvision's `fasterrcnn_resnet50_fpn` computes; docs/faster_rcnn.md explains each difference.
_base_ = 'faster-rcnn_r50_fpn_1x_coco.py'
bbox_coder = dict(clip_shrinking=False)
loss_bbox = dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0)
model = dict(
    rpn_head=dict(
        anchor_generator=dict(round_base_anchors=True, infer_strides=True),
        bbox_coder=bbox_coder,
        loss_bbox=loss_bbox,
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2, aligned=False)),
        bbox_head=dict(bbox_coder=bbox_coder, loss_bbox=loss_bbox),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(min_pos_iou=0.0, keep_best_gt=True), use_padding=True),
        rpn_proposal=dict(max_per_img=2000, min_bbox_size=1e-3),
    ),
    test_cfg=dict(rpn=dict(min_bbox_size=1e-3), rcnn=dict(min_bbox_size=1e-2)),
)
