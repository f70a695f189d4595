# Two-stage Deformable DETR on the built-in shapes (tools/quickstart.sh), with what DINO added to its training: query
# selection, look forward twice, denoising queries.
_base_ = 'deformable-detr-refine-twostage-plain_shapes.py'
model = dict(
    proposal_size=0.12,  # of the image, doubled from level to level: the shapes are 0.1 to 0.5 large
    mixed_query_selection=True,
    look_forward_twice=True,
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=60),
    ),
)
