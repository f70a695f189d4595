# H-Deformable-DETR (Jia et al., 2023): one-to-many queries on top, 12 epochs.
_base_ = 'deformable-detr-refine-twostage-plus_r50_16xb2-12e_coco.py'
model = dict(num_one2many_queries=1500, one2many_repeats=6, one2many_weight=1.0)
