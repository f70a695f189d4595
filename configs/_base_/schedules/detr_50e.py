# 50 epochs, the learning rate divided by 10 after 40: how Deformable DETR's authors train DETR for their table.
# They name one setting for all their 50-epoch models, learning rate 2e-4 and batches of 32 (section 5), without
# saying whether it holds for DETR as well; we take it that it does.
_base_ = 'detr_500e.py'
optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_cfg = dict(max_epochs=50, val_interval=1)
auto_scale_lr = dict(base_batch_size=32)
