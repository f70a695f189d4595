# The same, 36 epochs.
_base_ = 'deformable-detr-refine-twostage-plus_r50_16xb2-12e_coco.py'
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[30 / 36], gamma=0.1)]
