# COCO 2017, or any dataset in its layout, at one scale: shorter side 800, longer side at most 1333 pixels.
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
backend_args = None

load_image = dict(type='LoadImageFromFile', backend_args=backend_args)
load_boxes = dict(type='LoadAnnotations', with_bbox=True)
resize = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
flip = dict(type='RandomFlip', prob=0.5)
pack = dict(type='PackDetInputs')
train_pipeline = [load_image, load_boxes, resize, flip, pack]
test_pipeline = [load_image, resize, load_boxes, pack]
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
        backend_args=backend_args,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=test_pipeline,
        backend_args=backend_args,
    ),
)
test_dataloader = val_dataloader
# without ann_file the ground truth comes with the images
val_evaluator = dict(type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator
