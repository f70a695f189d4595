# Table row "DETR-DC5+" (50 epochs). Focal loss with weight 2 and 300 queries, as in Deformable DETR
# (section 5), and hence its matching cost and its choice among all (query, class) pairs.
_base_ = 'detr-dc5_r50_16xb2-50e_coco.py'
model = dict(
    num_queries=300,
    bbox_head=dict(
        loss_cls=dict(
            _delete_=True, type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
        )
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
)
