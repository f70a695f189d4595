# No row of the table: the 150-epoch schedule on one machine, 8 GPUs with 2 images each, that DETR's authors give
# for reproducing (39.5 AP) and MMDetection has under this name.
_base_ = 'detr_r50_16xb4-500e_coco.py'
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=150, val_interval=1)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[100 / 150], gamma=0.1)]
auto_scale_lr = dict(base_batch_size=16)
