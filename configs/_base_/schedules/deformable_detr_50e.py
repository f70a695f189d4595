# 50 epochs of AdamW, the learning rate divided by 10 after 40 (Deformable DETR, section 5 and appendix A.4).
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1),
        }
    ),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=50, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# a float is a share of the training, so that `max_epochs` alone changes its length
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[0.8], gamma=0.1)]
# 16 GPUs with 2 images each; `--auto-scale-lr` scales the learning rate linearly from here
auto_scale_lr = dict(base_batch_size=32)
