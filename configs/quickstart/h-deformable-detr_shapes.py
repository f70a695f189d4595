# The same with one-to-many queries on top (H-DETR).
_base_ = 'deformable-detr-refine-twostage-plus_shapes.py'
model = dict(num_one2many_queries=60, one2many_repeats=4)
