"""Detection datasets in COCO format."""

import os
from pathlib import Path
from typing import Any

from ddetr.datasets.coco_format import read_coco
from ddetr.datasets.detection import DetectionDataset
from ddetr.datasets.formats.coco import read_coco_split, split_of
from ddetr.datasets.formats.records import WrittenBox, WrittenImage, WrittenSplit
from ddetr.registry import DATASETS
from ddetr.utils.coco_classes import COCO_CLASSES


@DATASETS.register_module()
class CocoDataset(DetectionDataset):
    """Dataset of a COCO annotation file; see `DetectionDataset`.

    Without `metainfo`, all categories are used, ordered by id. (With `lazy_init=True`, `dataset.metainfo['classes']` is
    COCO's 80 names until the file is read.) Test sets have `category_ids` in their `metainfo`, for `CocoMetric`.

    Args:
        ann_file: JSON file, or a URI supported by mmengine's file backends.
        data_prefix: `dict(img=folder of the images)`.
        **kwargs: Arguments of `DetectionDataset`.

    Raises:
        InputError: See `DetectionDataset` and `read_coco`.
    """

    METAINFO = {'dataset_type': 'CocoDataset', 'classes': COCO_CLASSES}
    FORMAT = 'coco'
    PREFIX = {'img': ''}

    def read_split(self) -> WrittenSplit:
        """Read and check the annotation file."""
        coco = read_coco(self.ann_file, not self.test_mode, self.backend_args)
        return split_of(coco, Path(self.ann_file), Path(self.data_prefix['img']), '', [])

    def written_split(self) -> WrittenSplit:
        """Read the annotation file without rejecting faulty records; InputError unless it is a local file."""
        return read_coco_split(Path(self.ann_file), Path(self.data_prefix['img']), '')

    def _labels(self, split: WrittenSplit) -> dict[Any, int]:
        label_of = super()._labels(split)
        if self.test_mode:
            self._metainfo['category_ids'] = list(label_of)  # for the metric
        return label_of

    def _image_path(self, image: WrittenImage) -> str:
        return os.path.join(
            self.data_prefix['img'], image.file_name
        )  # may be a URI, which `Path` would mangle

    def _name(self, image: WrittenImage, box: WrittenBox) -> str:
        return f'annotation id {box.id} in image id {image.id} with bbox {list(box.written)}'
