# A small DINO for the built-in dataset: the backbone, width, layers and queries of deformable-detr_tiny.py.
_base_ = 'deformable-detr_tiny.py'
model = dict(
    type='DINO',
    proposal_size=0.12,
    bbox_head=dict(type='DINOHead'),
    dn_cfg=dict(
        label_noise_scale=0.5,
        box_noise_scale=1.0,
        group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=60),
    ),
)
