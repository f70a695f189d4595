"""Names that commands offer, here so that a command's help need not import what implements them."""

DATASET_FORMATS = ('coco', 'voc', 'yolo')  # of annotations
PROJECTS = ('ddetr', 'original', 'mmdet', 'hf')  # whose checkpoints are read and written
RESULT_FORMATS = ('picture', 'json', 'coco', 'yolo', 'csv')  # of detections
PRECISIONS = ('fp32', 'bf16')  # of the prepared form
