# DINO on the built-in shapes (tools/make_shapes.py), to compare with the detectors beside it.
_base_ = [
    '../_base_/models/dino_tiny.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_7e.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
