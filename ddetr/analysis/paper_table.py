"""Main results table of Deformable DETR: its ten systems with our configs and the published figures.

Source: "Main Results" in the README of the paper's own code, https://github.com/fundamentalvision/Deformable-DETR.
"""

from typing import NamedTuple


class PublishedRow(NamedTuple):
    """One system of the table; hours and speeds were measured on V100 GPUs."""

    name: str
    config: str  # config that reproduces it, without folder and suffix
    epochs: int
    ap: float  # box AP on COCO val2017 in percent, followed by small, medium and large objects
    ap_s: float
    ap_m: float
    ap_l: float
    params_m: int  # trainable parameters, in millions
    flops_g: int  # multiply-adds per image in billions, averaged over the first 100 images of val2017
    train_gpu_hours: int  # for the full schedule
    gpu_hours_per_epoch: float
    fps_batch1: float  # images per second at inference
    fps_batch4: float


_DEFORMABLE = 'deformable-detr'
# fmt: off
PUBLISHED = (
    PublishedRow('Faster R-CNN + FPN', 'faster-rcnn_r50_fpn_ms-109e_coco',
                 109, 42.0, 26.6, 45.4, 53.4, 42, 180, 380, 3.5, 25.6, 28.0),
    PublishedRow('DETR', 'detr_r50_16xb4-500e_coco',
                 500, 42.0, 20.5, 45.8, 61.1, 41, 86, 2000, 4.0, 27.0, 38.3),
    PublishedRow('DETR-DC5', 'detr-dc5_r50_64xb1-500e_coco',
                 500, 43.3, 22.5, 47.3, 61.1, 41, 187, 7000, 14.0, 11.4, 12.4),
    PublishedRow('DETR-DC5', 'detr-dc5_r50_16xb2-50e_coco',
                 50, 35.3, 15.2, 37.5, 53.6, 41, 187, 700, 14.0, 11.4, 12.4),
    PublishedRow('DETR-DC5+', 'detr-dc5-plus_r50_16xb2-50e_coco',
                 50, 36.2, 16.3, 39.2, 53.9, 41, 187, 700, 14.0, 11.4, 12.4),
    PublishedRow('Deformable DETR (single scale)', f'{_DEFORMABLE}-single-scale_r50_16xb2-50e_coco',
                 50, 39.4, 20.6, 43.0, 55.5, 34, 78, 160, 3.2, 27.0, 42.4),
    PublishedRow('Deformable DETR (single scale, DC5)', f'{_DEFORMABLE}-single-scale-dc5_r50_16xb2-50e_coco',
                 50, 41.5, 24.1, 45.3, 56.0, 34, 128, 215, 4.3, 22.1, 29.4),
    PublishedRow('Deformable DETR', f'{_DEFORMABLE}_r50_16xb2-50e_coco',
                 50, 44.5, 27.1, 47.6, 59.6, 40, 173, 325, 6.5, 15.0, 19.4),
    PublishedRow('+ iterative bounding box refinement', f'{_DEFORMABLE}-refine_r50_16xb2-50e_coco',
                 50, 46.2, 28.3, 49.2, 61.5, 41, 173, 325, 6.5, 15.0, 19.4),
    PublishedRow('++ two-stage Deformable DETR', f'{_DEFORMABLE}-refine-twostage_r50_16xb2-50e_coco',
                 50, 46.9, 29.6, 50.1, 61.6, 41, 173, 340, 6.8, 14.5, 18.8),
)
# fmt: on
