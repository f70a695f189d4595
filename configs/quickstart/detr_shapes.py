# DETR on the built-in shapes (tools/make_shapes.py), to compare with Deformable DETR beside it: the same data,
# backbone and number of iterations.
_base_ = [
    '../_base_/models/detr_tiny.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_7e.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
