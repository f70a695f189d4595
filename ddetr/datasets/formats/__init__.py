"""Annotation formats: reading (faulty records included), detection in a folder, writing."""

from .coco import read_coco_split
from .convert import Converted, convert_dataset
from .find import FoundDataset, FoundSplit, find_dataset
from .headers import image_size, images_in
from .options import data_options
from .records import Category, WrittenBox, WrittenImage, WrittenSplit, xywh_of
from .voc import read_voc_split
from .write import write_dataset
from .yolo import read_yolo_split

__all__ = [
    'Category',
    'Converted',
    'FoundDataset',
    'FoundSplit',
    'WrittenBox',
    'WrittenImage',
    'WrittenSplit',
    'convert_dataset',
    'data_options',
    'find_dataset',
    'image_size',
    'images_in',
    'read_coco_split',
    'read_voc_split',
    'read_yolo_split',
    'write_dataset',
    'xywh_of',
]
