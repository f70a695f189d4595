# No row of the table: MMDetection's 500-epoch schedule on 8 GPUs with 2 images each, under MMDetection's name.
_base_ = 'detr_r50_8xb2-150e_coco.py'
train_cfg = dict(max_epochs=500, val_interval=10)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[334 / 500], gamma=0.1)]
