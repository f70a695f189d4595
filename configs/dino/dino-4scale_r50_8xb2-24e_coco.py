# DINO with 4 feature levels, 24 epochs.
_base_ = 'dino-4scale_r50_8xb2-12e_coco.py'
train_cfg = dict(max_epochs=24)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[20 / 24], gamma=0.1)]
