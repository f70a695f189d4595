# Table row "Faster R-CNN + FPN" (109 epochs). The row is the DETR paper's strengthened baseline
# (its section 4.1 and table 1): the generalised IoU as box loss, random crops, Detectron2's "9x" schedule. Scales and
# crops here are DETR's.
_base_ = [
    '../_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/schedule_1x.py',
    '../_base_/default_runtime.py',
]
model = dict(
    # the weight that MMDetection gives the loss; the paper names none
    roi_head=dict(
        bbox_head=dict(
            reg_decoded_bbox=True, loss_bbox=dict(_delete_=True, type='GIoULoss', loss_weight=10.0)
        )
    )
)
# batches by aspect ratio, as Detectron2 has them; empty images have nothing to learn proposals from
train_dataloader = dict(
    batch_sampler=dict(_delete_=True, type='AspectRatioBatchSampler'),
    drop_last=False,
    dataset=dict(filter_cfg=dict(filter_empty_gt=True, min_size=32)),
)
# 810,000 iterations of 16 images; the learning rate falls 60,000 and 20,000 iterations before the end
train_cfg = dict(max_epochs=109)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, milestones=[101 / 109, 106 / 109], gamma=0.1),
]
