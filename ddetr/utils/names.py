"""Choices of command-line options, kept here so that help texts need no heavy imports."""

DATASET_FORMATS = ('coco', 'voc', 'yolo')  # of annotations
PROJECTS = ('ddetr', 'original', 'mmdet', 'hf')  # whose checkpoints are read and written
RESULT_FORMATS = ('picture', 'json', 'coco', 'yolo', 'csv')  # of detections
PRECISIONS = ('fp32', 'bf16')  # of the prepared form
