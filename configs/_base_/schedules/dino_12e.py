# 12 epochs, the learning rate divided by 10 after 11: DINO's "1x" schedule.
_base_ = 'detr_500e.py'
train_cfg = dict(max_epochs=12, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11 / 12], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
