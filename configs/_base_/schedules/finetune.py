# Fine-tuning on data of your own (docs/finetuning.md): averaged weights are validated and saved, the best checkpoint is
# kept, and a training that no longer improves stops. Change `train_cfg.max_epochs` alone: the schedule follows it. The
# learning rate is that of 16 images an update, and is scaled to the batch that is really trained with.
_base_ = ['deformable_detr_50e.py', '../default_runtime.py']
optim_wrapper = dict(optimizer=dict(lr=1e-4))
auto_scale_lr = dict(enable=True, base_batch_size=16)
train_cfg = dict(max_epochs=24)
param_scheduler = [
    dict(
        type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=0.02
    ),  # floats are shares of the training
    dict(type='MultiStepLR', by_epoch=True, milestones=[0.8], gamma=0.1),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002),
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', patience=8),
]
default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
