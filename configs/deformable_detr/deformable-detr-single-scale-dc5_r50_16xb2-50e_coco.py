# Table row "Deformable DETR (single scale, DC5)" (50 epochs).
_base_ = 'deformable-detr-single-scale_r50_16xb2-50e_coco.py'
model = dict(backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))
