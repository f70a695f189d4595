"""Detection datasets in Pascal VOC format."""

from pathlib import Path
from typing import Any

from ddetr.datasets.coco_format import listing
from ddetr.datasets.detection import LocalDataset
from ddetr.datasets.formats.records import Category, WrittenSplit
from ddetr.datasets.formats.voc import read_voc_split
from ddetr.registry import DATASETS
from ddetr.utils.errors import InputError


@DATASETS.register_module(name=['XMLDataset', 'VOCDataset'])
class XMLDataset(LocalDataset):
    """Dataset in Pascal VOC format, with one XML file per image; see `DetectionDataset` and `LocalDataset`.

    Without `metainfo`, the classes are the names in `classes.txt` or `labelmap.txt`, if there is one, followed by all
    other object names in the folder of XML files in alphabetical order (the order of VOC's own 20 classes). Objects
    marked `difficult` are ignored, like crowd regions. 1 is subtracted from all corners (see `read_voc_split`).

    Args:
        ann_file: Image list with one name per line, without suffix, such as `ImageSets/Main/train.txt`. All XML files
            are used if it is empty.
        data_prefix: `dict(sub_data_root=...)`, the folder that contains the next two, such as `VOC2007/`.
        img_subdir: Folder of the images.
        ann_subdir: Folder of the XML files.
        **kwargs: Arguments of `DetectionDataset`.

    Raises:
        InputError: See `DetectionDataset`. Unreadable XML files are skipped with a warning.
    """

    METAINFO = {'dataset_type': 'VOCDataset', 'classes': ()}
    FORMAT = 'voc'
    PREFIX = {'sub_data_root': ''}

    def __init__(
        self,
        *args: Any,
        img_subdir: str = 'JPEGImages',
        ann_subdir: str = 'Annotations',
        **kwargs: Any,
    ) -> None:
        self.img_subdir, self.ann_subdir = img_subdir, ann_subdir
        super().__init__(*args, **kwargs)

    @property
    def source(self) -> str:
        """Path of the image list or of the folder of XML files."""
        return self.ann_file or str(self._folder / self.ann_subdir)

    @property
    def _folder(self) -> Path:
        return Path(self.data_prefix.get('sub_data_root') or self.data_root)

    def read_split(self) -> WrittenSplit:
        """Read the XML files, with the sizes of the images themselves."""
        self.require_local()
        return self.with_sizes(self.written_split())

    def written_split(self) -> WrittenSplit:
        """Read the XML files without rejecting faulty records."""
        annotations, images = self._folder / self.ann_subdir, self._folder / self.img_subdir
        listed = Path(self.ann_file) if self.ann_file else None
        return read_voc_split(annotations, images, '', listed, self._folder)

    def _lacks(self, absent: list[str], categories: tuple[Category, ...]) -> None:
        """Raise only if all classes are absent: VOC lists no classes, so a split may lack objects of some."""
        known, classes = [category.name for category in categories], self.metainfo['classes']
        if len(absent) == len(classes) and known:
            raise InputError(
                f'{self.source} has no object of the classes {listing(classes)}; it has {listing(known)}: name these '
                'in metainfo=dict(classes=(...)), or omit metainfo to use all.'
            )
        self._warn(absent, f'classes have no object in {self.ann_subdir or "."}: {listing(absent)}')
