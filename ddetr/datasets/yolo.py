"""Detection datasets in YOLO format, as defined by Ultralytics."""

from pathlib import Path
from typing import Any

from ddetr.datasets.detection import LocalDataset
from ddetr.datasets.formats.records import WrittenSplit
from ddetr.datasets.formats.yolo import is_yaml, read_yolo_folder, read_yolo_split
from ddetr.registry import DATASETS
from ddetr.utils.errors import InputError


@DATASETS.register_module()
class YOLODataset(LocalDataset):
    """Dataset in YOLO format, with one text file per image; see `DetectionDataset` and `LocalDataset`.

    Without `metainfo`, the classes and their order come from `data.yaml` or the text file of names. Images without a
    text file have no boxes.

    Args:
        ann_file: `data.yaml`, or a text file with one class name per line.
        split: Key of `data.yaml`: 'train', 'val' or 'test'.
        data_prefix: `dict(img=folder of the images)`, which overrides `data.yaml`; by default all images below
            `data_root`. The text files are in the same path with `labels` instead of `images`, or beside the images.
        **kwargs: Arguments of `DetectionDataset`.

    Raises:
        InputError: See `DetectionDataset`; also if a text file has a class number without a name. Unreadable lines are
            skipped with a warning.
    """

    METAINFO = {'dataset_type': 'YOLODataset', 'classes': ()}
    FORMAT = 'yolo'
    PREFIX = {'img': ''}

    def __init__(self, *args: Any, split: str = 'train', **kwargs: Any) -> None:
        self.split = split
        super().__init__(*args, **kwargs)

    def read_split(self) -> WrittenSplit:
        """Read the text files, with the sizes of the images themselves."""
        self.require_local()
        split = self.written_split()
        self._check_numbers(split)
        return self.with_sizes(split)

    def written_split(self) -> WrittenSplit:
        """Read the text files without rejecting faulty records."""
        path, folder = Path(self.ann_file), Path(self.data_prefix.get('img', ''))
        by_yaml = is_yaml(path) and folder == Path(self.data_root)
        return read_yolo_split(path, self.split) if by_yaml else read_yolo_folder(folder, path, self.split)

    def _check_numbers(self, split: WrittenSplit) -> None:
        known = [category.id for category in split.categories]
        names = [category.name for category in split.categories]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f'{split.source}: the class name {twice!r} occurs twice.')
        for image in split.images:
            for box in image.boxes:
                if box.category not in known:
                    raise InputError(
                        f'{image.where}: {box.where} has class {box.category}, which {split.source.name} does not '
                        f'define: it has {", ".join(map(str, known[:10])) or "none"}{"..." if len(known) > 10 else ""}.'
                    )
