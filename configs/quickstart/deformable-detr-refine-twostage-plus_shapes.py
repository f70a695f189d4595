# Two-stage Deformable DETR with the recipe of H-DETR's authors: DINO's query selection and look forward twice.
_base_ = 'deformable-detr-refine-twostage-plain_shapes.py'
model = dict(mixed_query_selection=True, look_forward_twice=True)
