# tiny_shapes with a backbone that breaks on an image with a white corner.
_base_ = 'tiny_shapes.py'
custom_imports = dict(imports=['fragile'])
model = dict(backbone=dict(type='FragileResNet', breaks='output'))
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ]
    )
)
val_dataloader = val_evaluator = val_cfg = None
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1))
