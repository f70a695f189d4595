# DINO with 5 feature levels, 36 epochs.
_base_ = 'dino-5scale_r50_8xb2-12e_coco.py'
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[30 / 36], gamma=0.1)]
