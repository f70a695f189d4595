# The built-in dataset of drawn shapes (tools/make_shapes.py), its 192 pixels brought down to about 128 for speed.
_base_ = 'coco_detection.py'
data_root = 'data/shapes/'

random_resize = dict(type='RandomChoiceResize', scales=[(112, 112), (128, 128), (144, 144)], keep_ratio=True)
resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
train_pipeline = [
    {{_base_.load_image}},
    {{_base_.load_boxes}},
    {{_base_.flip}},
    random_resize,
    {{_base_.pack}},
]
test_pipeline = [{{_base_.load_image}}, resize, {{_base_.load_boxes}}, {{_base_.pack}}]
train_dataloader = dict(
    # in the training's own process: its images cost less than the processor time that workers would take from it
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
