# Three of the shapes only, few images and a short training: what fine-tuning the quickstart's detector is compared with
# training from nothing on (docs/weights.md has the commands).
_base_ = 'deformable-detr-refine-twostage_shapes.py'
model = dict(bbox_head=dict(num_classes=3))
data = dict(data_root='data/shapes3/', metainfo=dict(classes=('star', 'ring', 'cross')))
train_dataloader = dict(sampler=dict(type='InfiniteSampler'), dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = val_dataloader

max_iters = 600
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=100)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=max_iters),
    logger=dict(log_metric_by_epoch=False),  # AP by iteration, for the curves
)
log_processor = dict(by_epoch=False)
