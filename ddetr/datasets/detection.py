"""Base classes of the datasets, independent of the annotation format."""

import os
from abc import abstractmethod
from contextlib import suppress
from typing import Any, ClassVar, Literal

from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from ddetr.datasets.coco_format import listing
from ddetr.datasets.formats.headers import size_for_loading
from ddetr.datasets.formats.records import (
    Category,
    WrittenBox,
    WrittenImage,
    WrittenSplit,
    clip_corners,
    xywh_of,
)
from ddetr.datasets.formats.units import check_units
from ddetr.datasets.image_cache import ImageCache
from ddetr.datasets.transforms.loading import LoadImageFromFile
from ddetr.utils.errors import InputError


class DetectionDataset(BaseDataset):
    """Base class of detection datasets; a subclass reads its format in `read_split`.

    `metainfo=dict(classes=('cat', 'dog'))` selects these classes, in this order. By default all classes are used, in
    the order documented by the subclass. A label is an index into `dataset.metainfo['classes']`.

    Each item has `img_id`, `img_path`, `height`, `width` and `instances`, a list of dicts with `bbox` (x1 y1 x2 y2 in
    pixels), `bbox_label` and `ignore_flag` (1 for crowd regions and difficult objects, which training and evaluation
    ignore). Training sets contain only valid boxes, clipped to the image. Test sets contain every box in the file,
    with `bbox_xywh` and `area` for `CocoMetric`.

    Args:
        ann_file: Annotation file, relative to `data_root`.
        metainfo: Classes to use, see above.
        data_root: Folder of the dataset.
        data_prefix: Folders relative to `data_root`, under the keys documented by the subclass.
        filter_cfg: Filters for training sets: `filter_empty_gt=True` drops images without boxes, `min_size=n` drops
            images whose shorter side is below n pixels, `bbox_min_size=n` ignores boxes with a side below n pixels.
        backend_args: Arguments of mmengine's file backend. Local images are checked for existence when the dataset is
            built, remote ones when they are read.
        cache_mode: Cache encoded images in memory, once per machine, when first read; 'ahead' reads all of them before
            training.
        cache_limit_gib: Maximum cache size in GiB; None for half of the available memory. See `ImageCache`.
        **kwargs: Arguments of mmengine's `BaseDataset`.

    Raises:
        InputError: Annotations or images are missing or malformed, a class is missing, boxes have the wrong unit, or no
            image is left for training. Training sets drop boxes that are empty or outside the image, with a warning.
            `filter_cfg` also warns about what it drops.
    """

    FORMAT: ClassVar[str]  # 'coco', 'voc' or 'yolo'
    PREFIX: ClassVar[dict[str, str]]  # the keys of `data_prefix` with their defaults

    def __init__(
        self,
        ann_file: str = '',
        metainfo: dict | None = None,
        data_root: str = '',
        data_prefix: dict | None = None,
        filter_cfg: dict | None = None,
        backend_args: dict | None = None,
        cache_mode: bool | Literal['ahead'] = False,
        cache_limit_gib: float | None = None,
        **kwargs: Any,
    ) -> None:
        if cache_mode not in (True, False, 'ahead'):
            raise InputError(f'{cache_mode=}: set it to True, False or "ahead" in the dataset config')
        self.backend_args = backend_args
        self.cache_mode, self.cache_limit_gib = cache_mode, cache_limit_gib
        self.image_cache: ImageCache | None = None
        self._takes_classes_from_file = 'classes' not in (metainfo or {})
        super().__init__(ann_file, metainfo, data_root, data_prefix or {**self.PREFIX}, filter_cfg, **kwargs)

    @abstractmethod
    def read_split(self) -> WrittenSplit:
        """Read the annotations; InputError if they are unusable for training."""

    @abstractmethod
    def written_split(self) -> WrittenSplit:
        """Read the annotations without rejecting faulty records."""

    @property
    def source(self) -> str:
        """Path of the annotations, for messages."""
        return self.ann_file

    def load_data_list(self) -> list[dict]:
        """Return one dict per image, as described in the class docstring, before filtering."""
        split = self.read_split()
        self._warn(split.unreadable, 'records cannot be read and are skipped; the first: {}')
        label_of = self._labels(split)
        dropped: list[str] = []
        data_list = [self._item(image, label_of, dropped) for image in split.images]
        check_units(split, [(item['width'], item['height']) for item in data_list])
        self._warn(dropped, 'boxes that are empty or outside their image are skipped; the first: {}')
        self._num_files = len(data_list)
        for i, item in enumerate(data_list if self.cache_mode else ()):
            item['cache_index'] = i  # index of the file: unaffected by filtering and subsets
        if self.backend_args is None and not any('://' in prefix for prefix in self.data_prefix.values()):
            self._check_images_exist([item['img_path'] for item in data_list])
        return data_list

    def full_init(self) -> None:
        """Read the annotations once, and set up the shared image cache if `cache_mode` is set."""
        super().full_init()
        if self.cache_mode and self.image_cache is None:
            self.image_cache = ImageCache(self._num_files, self.cache_limit_gib, self.source)
            if self.cache_mode == 'ahead':
                self.image_cache.fill(len(self), self._read_file)

    def _read_file(self, idx: int) -> None:
        """Read one image file into the cache; errors are raised later, when the item is used."""
        loader = next(step for step in self.pipeline.transforms if isinstance(step, LoadImageFromFile))
        with suppress(OSError, InputError):
            loader.read_file(self.get_data_info(idx))

    def get_data_info(self, idx: int) -> dict:
        """Return one item, with `image_cache` (set by `cache_mode`) and `batch_seed` (from the index)."""
        needed = {'image_cache': self.image_cache, 'batch_seed': getattr(idx, 'batch_seed', None)}
        return super().get_data_info(idx) | {k: v for k, v in needed.items() if v is not None}

    def filter_data(self) -> list[dict]:
        """Apply `filter_cfg` to a training set; test sets are never filtered."""
        if not self.data_list:
            raise InputError(f'annotation file {self.source} lists no images')
        if self.test_mode or not self.filter_cfg:
            return self.data_list
        needs_box = self.filter_cfg.get('filter_empty_gt', False)
        min_size = self.filter_cfg.get('min_size', 0)
        kept, small, empty = [], [], []
        for item in self.data_list:
            is_small, is_empty = min(item['width'], item['height']) < min_size, not item['instances']
            small += [item] * is_small
            empty += [item] * (needs_box and is_empty)
            kept += [item] * (not is_small and not (needs_box and is_empty))
        for left_out, why in ((small, f'min_size={min_size}'), (empty, 'filter_empty_gt=True: no valid box')):
            for first in left_out[:1]:
                MMLogger.get_current_instance().warning(
                    f'{self.source}: {len(left_out)} of {len(self.data_list)} images are skipped ({why}); the first '
                    f'is {first["img_path"]}, {first["width"]} x {first["height"]} pixels according to the file'
                )
        if not kept:
            raise InputError(
                f'filter_cfg={dict(self.filter_cfg)} removes all {len(self.data_list)} images of '
                f'{self.source}: relax it in the config'
            )
        return kept

    def get_cat_ids(self, idx: int) -> list[int]:
        """Return the labels in one image, for mmengine's `ClassBalancedDataset`."""
        return [instance['bbox_label'] for instance in self.get_data_info(idx)['instances']]

    def _labels(self, split: WrittenSplit) -> dict[Any, int]:
        """Map category ids (names in formats without ids) to labels; sets `metainfo['classes']`."""
        if self._takes_classes_from_file:
            self._metainfo['classes'] = tuple(category.name for category in split.ordered_categories())
        key_of = {category.name: category.key for category in split.categories}
        classes = self._metainfo['classes']
        if absent := [name for name in classes if name not in key_of]:
            self._lacks(absent, split.categories)
        return {key_of[name]: label for label, name in enumerate(classes) if name in key_of}

    def _lacks(self, absent: list[str], categories: tuple[Category, ...]) -> None:
        """Raise an InputError for classes that the annotations do not contain."""
        known = [category.name for category in categories]
        raise InputError(
            f'annotation file {self.source} has no category named {listing(absent)}; it has {listing(known)}: '
            "name the file's own categories in metainfo=dict(classes=(...)), or omit metainfo to use all"
        )

    def _item(self, image: WrittenImage, label_of: dict[Any, int], dropped: list[str]) -> dict[str, Any]:
        width, height = image.size or (0, 0)
        instances = []
        for box in image.boxes:
            if (label := label_of.get(box.category)) is None:
                continue
            instance = self._instance(box, label, (width, height))
            if instance is None:
                dropped.append(self._name(image, box))
            else:
                instances.append(instance)
        return {
            'img_id': image.id,
            'img_path': self._image_path(image),
            'height': height,
            'width': width,
            'instances': instances,
        }

    def _instance(self, box: WrittenBox, label: int, size: tuple[int, int]) -> dict[str, Any] | None:
        """Return the instance dict of a box; None if the box is invalid for training."""
        instance: dict[str, Any] = {'bbox_label': label, 'ignore_flag': int(box.iscrowd or box.difficult)}
        if self.test_mode:
            xywh = xywh_of(box, self.FORMAT)
            area = xywh[2] * xywh[3] if box.area is None else box.area
            return instance | {'bbox': list(box.corners), 'bbox_xywh': xywh, 'area': area}
        if (clipped := clip_corners(box.corners, *size)) is None:
            return None
        x1, y1, x2, y2 = clipped
        if min(x2 - x1, y2 - y1) < (self.filter_cfg or {}).get('bbox_min_size', 0):
            instance['ignore_flag'] = 1
        return instance | {'bbox': list(clipped)}

    def _image_path(self, image: WrittenImage) -> str:
        return str(image.path)

    def _name(self, image: WrittenImage, box: WrittenBox) -> str:
        """Description of a box, for messages."""
        return f'{image.where}, {box.where}: {list(box.written)}'

    def _warn(self, faults: tuple[str, ...] | list[str], sentence: str) -> None:
        """Log one warning for all faults of one kind, with the first as an example."""
        if faults:
            text = sentence.replace('{}', faults[0])
            MMLogger.get_current_instance().warning(f'{self.source}: {len(faults)} {text}')

    def _check_images_exist(self, paths: list[str]) -> None:
        """Check by listing each folder once: one listing instead of 118,287 `stat` calls for COCO's training images."""
        wanted = {os.path.split(path) for path in paths}
        folders = [folder for folder in {folder for folder, _ in wanted} if os.path.isdir(folder or '.')]
        present = {(folder, name) for folder in folders for name in os.listdir(folder or '.')}
        if missing := sorted(wanted - present):
            raise InputError(
                f'{len(missing)} of the {len(paths)} images listed in {self.source} do not exist; the '
                f'first is {os.path.join(*missing[0])}: check data_root and data_prefix=dict(img=...) in the config'
            )


class LocalDataset(DetectionDataset):
    """Base class of formats with one annotation file per image, on the local disk.

    If an annotation file gives no image size or a wrong one, the size is read from the image header, without decoding.
    """

    def require_local(self) -> None:
        """Raise an InputError if another file backend than the local disk is configured."""
        if self.backend_args is not None or any('://' in prefix for prefix in self.data_prefix.values()):
            raise InputError(
                f'{type(self).__name__} supports only the local disk: remove backend_args, or convert the '
                'annotations to COCO with tools/data/convert.py.'
            )

    def with_sizes(self, split: WrittenSplit) -> WrittenSplit:
        """Return the split with the image sizes that `LoadImageFromFile` expects.

        Raises:
            InputError: The header of an existing image is unreadable.
        """
        images, broken, other = [], [], []
        for image in split.images:
            known = image.header or size_for_loading(image.path, image.size)
            if known is None and image.path.exists():
                broken.append(str(image.path))
            if known and image.size and known != image.size:
                written = ' x '.join(map(str, image.size))
                other.append(f'{image.where}: {written}, but the image is {known[0]} x {known[1]}')
            images.append(image._replace(size=known))
        if broken:
            raise InputError(
                f'{self.source}: {len(broken)} images cannot be read; the first is {broken[0]}. Repair it, or '
                'remove it and its annotations.'
            )
        self._warn(other, "files give a wrong image size, so the image's own is used; the first: {}")
        return split._replace(images=tuple(images))
