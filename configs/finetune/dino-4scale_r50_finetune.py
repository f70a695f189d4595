# DINO from a COCO checkpoint: set load_from to one of ours, the original code or MMDetection (docs/weights.md). With
# MMDetection's, take dino-4scale_r50_improved_8xb2-12e_coco.py's model keys: its positions differ.
_base_ = [
    '../_base_/models/dino_r50.py',
    '../_base_/datasets/coco_detection_detr.py',
    '../_base_/schedules/finetune.py',
]
