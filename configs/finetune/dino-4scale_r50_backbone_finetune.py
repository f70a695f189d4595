# DINO from a pretrained backbone only, where no COCO checkpoint fits: a longer training, and large-scale jitter (Ghiasi
# et al., 2021) at 640 pixels against overfitting.
_base_ = 'dino-4scale_r50_finetune.py'

size = (640, 640)
train_pipeline = [
    {{_base_.load_image}},
    {{_base_.load_boxes}},
    {{_base_.flip}},
    dict(type='RandomResize', scale=size, ratio_range=(0.3, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_type='absolute', crop_size=size, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2), keep_empty=False),
    dict(type='PhotoMetricDistortion', swap_channels=False),
    {{_base_.pack}},
]
test_pipeline = [
    {{_base_.load_image}},
    dict(type='Resize', scale=size, keep_ratio=True),
    {{_base_.load_boxes}},
    {{_base_.pack}},
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=72)
