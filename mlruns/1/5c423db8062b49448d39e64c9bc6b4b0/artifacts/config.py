allow_partial = False
auto_scale_lr = dict(base_batch_size=32)
backend_args = None
data_root = 'data/shapes/'
dataset_type = 'CocoDataset'
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=3, type='CheckpointHook'),
    logger=dict(interval=1, type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    timer=dict(type='IterTimerHook'),
    visualization=dict(type='DetVisualizationHook'))
default_scope = 'ddetr'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
flip = dict(prob=0.5, type='RandomFlip')
launcher = 'none'
load_boxes = dict(type='LoadAnnotations', with_bbox=True)
load_from = None
load_image = dict(backend_args=None, type='LoadImageFromFile')
log_level = 'INFO'
log_processor = dict(by_epoch=True, type='LogProcessor', window_size=50)
max_epochs = 50
model = dict(
    as_two_stage=False,
    backbone=dict(
        base_channels=8,
        depth=18,
        frozen_stages=-1,
        init_cfg=None,
        norm_cfg=dict(requires_grad=False, type='BN'),
        norm_eval=True,
        num_stages=4,
        out_indices=(
            1,
            2,
            3,
        ),
        style='pytorch',
        type='ResNet'),
    bbox_head=dict(
        embed_dims=32,
        loss_bbox=dict(loss_weight=5.0, type='L1Loss'),
        loss_cls=dict(
            alpha=0.25,
            gamma=2.0,
            loss_weight=2.0,
            type='FocalLoss',
            use_sigmoid=True),
        loss_iou=dict(loss_weight=2.0, type='GIoULoss'),
        num_classes=6,
        type='DeformableDETRHead'),
    data_preprocessor=dict(
        bgr_to_rgb=True,
        mean=[
            123.675,
            116.28,
            103.53,
        ],
        pad_size_divisor=1,
        std=[
            58.395,
            57.12,
            57.375,
        ],
        type='DetDataPreprocessor'),
    decoder=dict(
        layer_cfg=dict(
            cross_attn_cfg=dict(dropout=0.1, embed_dims=32, num_heads=2),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64, ffn_drop=0.1),
            self_attn_cfg=dict(dropout=0.1, embed_dims=32, num_heads=2)),
        num_layers=2),
    encoder=dict(
        layer_cfg=dict(
            ffn_cfg=dict(embed_dims=32, feedforward_channels=64, ffn_drop=0.1),
            self_attn_cfg=dict(dropout=0.1, embed_dims=32, num_heads=2)),
        num_layers=1),
    neck=dict(
        act_cfg=None,
        bias=True,
        in_channels=[
            16,
            32,
            64,
        ],
        kernel_size=1,
        norm_cfg=dict(num_groups=4, type='GN'),
        num_outs=4,
        out_channels=32,
        type='ChannelMapper'),
    num_feature_levels=4,
    num_queries=12,
    positional_encoding=dict(normalize=True, num_feats=16, offset=-0.5),
    test_cfg=dict(max_per_img=100),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(box_format='xywh', type='BBoxL1Cost', weight=5.0),
                dict(iou_mode='giou', type='IoUCost', weight=2.0),
            ],
            type='HungarianAssigner')),
    type='DeformableDETR',
    with_box_refine=False)
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.1, norm_type=2),
    optimizer=dict(lr=0.0002, type='AdamW', weight_decay=0.0001),
    paramwise_cfg=dict(
        custom_keys=dict(
            backbone=dict(lr_mult=0.1),
            reference_points=dict(lr_mult=0.1),
            sampling_offsets=dict(lr_mult=0.1))),
    type='OptimWrapper')
pack = dict(type='PackDetInputs')
param_scheduler = [
    dict(
        begin=0,
        by_epoch=True,
        end=2,
        gamma=0.1,
        milestones=[
            1,
        ],
        type='MultiStepLR'),
]
random_resize = dict(
    keep_ratio=True,
    scales=[
        (
            112,
            112,
        ),
        (
            128,
            128,
        ),
        (
            144,
            144,
        ),
    ],
    type='RandomChoiceResize')
randomness = dict(seed=0)
resize = dict(
    keep_ratio=True, scale=(
        128,
        128,
    ), type='Resize')
resume = False
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=2,
    dataset=dict(
        ann_file='annotations/instances_val2017.json',
        backend_args=None,
        data_prefix=dict(img='val2017/'),
        data_root='/tmp/pytest-of-root/pytest-106/tiny0/shapes',
        pipeline=[
            dict(backend_args=None, type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                128,
                128,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(metric='bbox', type='CocoMetric')
test_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        128,
        128,
    ), type='Resize'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_cfg = dict(max_epochs=1, type='EpochBasedTrainLoop', val_interval=9)
train_dataloader = dict(
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    batch_size=2,
    dataset=dict(
        ann_file='annotations/instances_train2017.json',
        backend_args=None,
        data_prefix=dict(img='train2017/'),
        data_root='/tmp/pytest-of-root/pytest-106/tiny0/shapes',
        filter_cfg=dict(filter_empty_gt=False, min_size=32),
        pipeline=[
            dict(backend_args=None, type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(prob=0.5, type='RandomFlip'),
            dict(
                keep_ratio=True,
                scales=[
                    (
                        112,
                        112,
                    ),
                    (
                        128,
                        128,
                    ),
                    (
                        144,
                        144,
                    ),
                ],
                type='RandomChoiceResize'),
            dict(type='PackDetInputs'),
        ],
        type='CocoDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='DefaultSampler'))
train_pipeline = [
    dict(backend_args=None, type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(prob=0.5, type='RandomFlip'),
    dict(
        keep_ratio=True,
        scales=[
            (
                112,
                112,
            ),
            (
                128,
                128,
            ),
            (
                144,
                144,
            ),
        ],
        type='RandomChoiceResize'),
    dict(type='PackDetInputs'),
]
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=2,
    dataset=dict(
        ann_file='annotations/instances_val2017.json',
        backend_args=None,
        data_prefix=dict(img='val2017/'),
        data_root='/tmp/pytest-of-root/pytest-106/tiny0/shapes',
        pipeline=[
            dict(backend_args=None, type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                128,
                128,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(metric='bbox', type='CocoMetric')
vis_backends = [
    dict(type='LocalVisBackend'),
]
visualizer = dict(
    name='visualizer',
    type='DetLocalVisualizer',
    vis_backends=[
        dict(
            exp_name='ddetr',
            tracking_uri=
            'sqlite:////tmp/pytest-of-root/pytest-106/test_an_experiment_tracker_get0/mlflow.db',
            type='MLflowVisBackend'),
    ])
work_dir = '/tmp/pytest-of-root/pytest-106/test_an_experiment_tracker_get0'
