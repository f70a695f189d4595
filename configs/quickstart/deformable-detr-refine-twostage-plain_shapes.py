# The paper's two-stage Deformable DETR on the built-in shapes, to compare the quickstart's recipe with.
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_7e.py',
    '../_base_/default_runtime.py',
]
train_dataloader = dict(batch_size=4)
