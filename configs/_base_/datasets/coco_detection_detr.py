# DETR's augmentation, which Deformable DETR keeps: a flip, then either a resize to a random scale, or a random
# crop between two resizes (DETR, section 4, "Technical details"). Images without boxes are trained on too.
_base_ = 'coco_detection.py'

random_resize = dict(
    type='RandomChoiceResize',
    scales=[(short_side, 1333) for short_side in range(480, 801, 32)],
    keep_ratio=True,
)
resize_for_crop = dict(  # 4200: the longer side is not limited
    type='RandomChoiceResize', scales=[(400, 4200), (500, 4200), (600, 4200)], keep_ratio=True
)
random_crop = dict(
    type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True
)
augment = dict(
    type='RandomChoice', transforms=[[random_resize], [resize_for_crop, random_crop, random_resize]]
)
train_pipeline = [
    {{_base_.load_image}},
    {{_base_.load_boxes}},
    {{_base_.flip}},
    augment,
    {{_base_.pack}},
]
# As the original: images are drawn at random, whatever their aspect ratio and size; a last, smaller batch is left out.
train_dataloader = dict(
    batch_sampler=None,
    drop_last=True,
    dataset=dict(filter_cfg=dict(_delete_=True, filter_empty_gt=False), pipeline=train_pipeline),
)
