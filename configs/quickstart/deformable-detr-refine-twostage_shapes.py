# Two-stage Deformable DETR on the built-in shapes (tools/quickstart.sh), with what DINO added to its training: query
# selection, look forward twice, denoising queries.
_base_ = [
    '../_base_/models/deformable-detr_tiny.py',
    '../_base_/datasets/shapes_detection.py',
    '../_base_/schedules/shapes_8e.py',
    '../_base_/default_runtime.py',
]
model = dict(
    mixed_query_selection=True,
    look_forward_twice=True,
    proposal_size=0.12,  # the shapes are 0.1 to 0.5 of the image large
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=30),
    ),
)
train_dataloader = dict(batch_size=4)
