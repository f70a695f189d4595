# For fine-tuning on data of your own (docs/finetuning.md): averaged weights are validated and saved, the best
# checkpoint is kept, and a training that no longer improves stops. At most 24 epochs, the learning rate divided by 10
# after 20.
_base_ = 'deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002),
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', patience=8),
]
default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
max_epochs = 24
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[20], gamma=0.1)
]
