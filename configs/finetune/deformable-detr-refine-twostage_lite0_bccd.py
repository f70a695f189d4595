# BCCD, blood cells: 205 training images of 640 x 480. The recipe of deformable-detr-refine-twostage_lite0_small.py for
# images of that aspect ratio, with half and quarter turns, since cells have no upright. Results and times are in
# docs/finetuning.md, "BCCD".
_base_ = 'deformable-detr-refine-twostage_lite0_small.py'

model = dict(bbox_head=dict(num_classes=3))
size = (384, 288)  # w, h
crop = dict(type='RandomCrop', crop_type='absolute', crop_size=size, allow_negative_crop=True)
turn = dict(type='RandomRotate90', prob=0.5)
flips = dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal'])
train_pipeline = [
    {{_base_.jitter}},
    crop,
    {{_base_.filter_boxes}},
    turn,
    flips,
    {{_base_.colour}},
    {{_base_.pack}},
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
