# BCCD: blood cells under a microscope, 205 training images of 640 x 480. What deformable-detr-refine-twostage_lite0_small
# does, and cells have no up: half turns, quarter turns.
_base_ = 'deformable-detr-refine-twostage_lite0_small.py'

model = dict(bbox_head=dict(num_classes=3))
turn = dict(type='RandomRotate90', prob=0.5)
flips = dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal'])
train_pipeline = [
    {{_base_.mosaic}},
    {{_base_.jitter}},
    {{_base_.crop}},
    {{_base_.filter_boxes}},
    turn,
    flips,
    {{_base_.colour}},
    {{_base_.pack}},
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
