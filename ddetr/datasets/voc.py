"""Detection data in Pascal VOC's format."""

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
    """Images with one XML file each, in Pascal VOC's format; see `DetectionDataset` and `LocalDataset`.

    Without `metainfo` the classes are the names in `classes.txt` or `labelmap.txt`, if there is such a file, and of all
    other objects in the folder of XML files in alphabetical order (which is the order of VOC's own 20 classes). Objects
    marked `difficult` are ignored, as crowd regions are. Of all corners 1 is subtracted (see `read_voc_split`).

    Args:
        ann_file: List of images with one name a line, without suffix, such as `ImageSets/Main/train.txt`. Without it
            all XML files are taken.
        data_prefix: `dict(sub_data_root=...)`, folder that the next two are relative to, such as `VOC2007/`.
        img_subdir: Folder of the images.
        ann_subdir: Folder of the XML files.
        **kwargs: Of `DetectionDataset`.

    Raises:
        InputError: See `DetectionDataset`. XML files that cannot be read are left out with a warning.
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
        """The list of images, or the folder of XML files."""
        return self.ann_file or str(self._folder / self.ann_subdir)

    @property
    def _folder(self) -> Path:
        return Path(self.data_prefix.get('sub_data_root') or self.data_root)

    def read_split(self) -> WrittenSplit:
        """The XML files, with the sizes that the images have."""
        self.require_local()
        return self.with_sizes(self.written_split())

    def written_split(self) -> WrittenSplit:
        """The XML files as they are, faults included."""
        annotations, images = self._folder / self.ann_subdir, self._folder / self.img_subdir
        listed = Path(self.ann_file) if self.ann_file else None
        return read_voc_split(annotations, images, '', listed, self._folder)

    def _lacks(self, absent: list[str], categories: tuple[Category, ...]) -> None:
        """The format lists no classes: some may well have no object in this folder, but not all of them."""
        known, classes = [category.name for category in categories], self.metainfo['classes']
        if len(absent) == len(classes) and known:
            raise InputError(
                f'{self.source} has no object of the classes {listing(classes)}; it has {listing(known)}: name these '
                'in metainfo=dict(classes=(...)), or leave metainfo out for all.'
            )
        self._warn(absent, f'classes have no object in {self.ann_subdir or "."}: {listing(absent)}')
