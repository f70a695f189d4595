# 500 epochs of AdamW, the learning rate divided by 10 after 400 (DETR, section 4 and appendix A.4).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=500, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# a float is a share of the training, so that `max_epochs` alone changes its length
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[0.8], gamma=0.1)]
# the paper's 16 GPUs with 4 images each; `--auto-scale-lr` scales the learning rate linearly from here
auto_scale_lr = dict(base_batch_size=64)
