# The multi-scale Deformable DETR at a small resolution, without pretrained weights, for 100 iterations on 16 images: a
# first look at COCO, or at data in its layout, on a CPU. To detect anything, train the config that it is based on.
_base_ = '../deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'

model = dict(
    # trained too: the frozen batch norms of a network that was never trained normalise nothing
    backbone=dict(init_cfg=None, norm_cfg=dict(requires_grad=True), norm_eval=False, frozen_stages=-1)
)
random_resize = dict(type='RandomChoiceResize', scales=[(128, 112), (144, 128), (160, 144)], keep_ratio=True)
resize = dict(type='Resize', scale=(160, 144), keep_ratio=True)
train_pipeline = [
    {{_base_.load_image}},
    {{_base_.load_boxes}},
    {{_base_.flip}},
    random_resize,
    {{_base_.pack}},
]
test_pipeline = [{{_base_.load_image}}, resize, {{_base_.load_boxes}}, {{_base_.pack}}]
train_dataloader = dict(batch_size=2, dataset=dict(indices=16, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# the backbone learns as fast as the rest: nothing in it is worth keeping
optim_wrapper = dict(
    optimizer=dict(lr=5e-4), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0)))
)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=100, val_interval=100)
param_scheduler = []
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(_delete_=True, type='CheckpointHook', interval=50, by_epoch=False),
)
log_processor = dict(by_epoch=False, window_size=10)
