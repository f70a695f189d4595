# Table row "++ two-stage Deformable DETR" (50 epochs).
_base_ = 'deformable-detr-refine_r50_16xb2-50e_coco.py'
model = dict(as_two_stage=True)
