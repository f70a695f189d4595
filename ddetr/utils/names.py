"""Choices of command-line options, kept here so that `--help` needs no heavy imports."""

DATASET_FORMATS = ('coco', 'voc', 'yolo')  # annotation formats
PROJECTS = ('ddetr', 'original', 'mmdet', 'hf')  # supported checkpoint layouts
RESULT_FORMATS = ('picture', 'json', 'coco', 'yolo', 'csv')  # formats of saved detections
PRECISIONS = ('fp32', 'bf16')  # precisions of prepared models
