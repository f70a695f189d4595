# Two-stage Deformable DETR with the recipe switches of H-DETR's and DINO's authors, without denoising.
_base_ = 'deformable-detr-refine-twostage-plain_shapes.py'
model = dict(mixed_query_selection=True, look_forward_twice=True, class_aware_proposals=True)
