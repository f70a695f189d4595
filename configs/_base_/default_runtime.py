# What every run shares: hooks, logging, how processes and workers start.
default_scope = 'ddetr'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),  # 4 validation images after each evaluation
    training_page=dict(type='TrainingPageHook'),  # WORK_DIR/curves.html
    trim_memory=dict(type='TrimMemoryHook'),  # freed memory returns to the system
    black_box=dict(type='BlackBoxHook', max_skipped=0),  # NaN: stop, name the module, write a capsule
)

env_cfg = dict(
    cudnn_benchmark=False,  # images of ever new sizes: it would search for algorithms forever
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),  # gloo is taken where there is no GPU
)

randomness = dict(seed=0)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
