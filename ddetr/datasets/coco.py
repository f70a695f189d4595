"""Detection data in COCO's format: COCO itself, or anybody's own."""

import os
from collections import defaultdict
from contextlib import suppress
from typing import Literal

from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger

from ddetr.datasets.coco_format import category_ids_of, classes_of, clip_box, read_coco
from ddetr.datasets.image_cache import ImageCache
from ddetr.datasets.transforms.loading import LoadImageFromFile
from ddetr.registry import DATASETS
from ddetr.utils.coco_classes import COCO_CLASSES
from ddetr.utils.errors import InputError


@DATASETS.register_module()
class CocoDataset(BaseDataset):
    """Images and boxes of an annotation file in COCO's format.

    `metainfo=dict(classes=('cat', 'dog'))` takes these categories of the file, in this order, and leaves the others
    out. Without it all categories are taken, ordered by their ids (until the file is read, with `lazy_init=True`,
    `dataset.metainfo['classes']` is COCO's 80 names). A label is an index into `dataset.metainfo['classes']`.

    Each item has `img_id`, `img_path`, `height`, `width`, `instances`: a list of `bbox` (x1 y1 x2 y2 in pixels),
    `bbox_label`, `ignore_flag` (1 for crowd regions). Training sets have valid boxes only, clipped to the image. Test
    sets have all of the file's, with `bbox_xywh` and `area` for `CocoMetric`, and `category_ids` in their `metainfo`.

    Args:
        ann_file: relative to `data_root`, as are the folders of `data_prefix`.
        data_prefix: `dict(img=folder of the images)`.
        filter_cfg: of training sets only: `filter_empty_gt=True` leaves out the images without any box,
            `min_size=n` those whose shorter side is below n pixels.
        backend_args: of mmengine's file backend. Images on the local disk are checked to exist when the dataset is
            built, images elsewhere when they are read.
        cache_mode: keep the images' files in memory, once per machine, from their first reading on; 'ahead' reads them
            all before the training starts.
        cache_limit_gib: memory for them; None for half of what is available. See `ImageCache`.
        **kwargs: of mmengine's `BaseDataset`.

    Raises:
        InputError: the annotation file or images that it lists do not exist, or it is malformed, lacks a class, or
            leaves no image to train on. Training sets only warn of boxes of zero or negative size or wholly outside
            the image, and drop them: COCO's own train2017 has some. `filter_cfg` warns of what it leaves out, too.
    """

    METAINFO = {'dataset_type': 'CocoDataset', 'classes': COCO_CLASSES}

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
        **kwargs,
    ):
        if cache_mode not in (True, False, 'ahead'):
            raise InputError(f'{cache_mode=} of the dataset is none of True, False, "ahead"')
        self.backend_args = backend_args
        self.cache_mode, self.cache_limit_gib = cache_mode, cache_limit_gib
        self.image_cache: ImageCache | None = None
        self._takes_classes_from_file = 'classes' not in (metainfo or {})
        super().__init__(ann_file, metainfo, data_root, data_prefix or {'img': ''}, filter_cfg, **kwargs)

    def load_data_list(self) -> list[dict]:
        """One dict an image, as in the class's docstring, before filtering."""
        coco = read_coco(self.ann_file, not self.test_mode, self.backend_args)
        if self._takes_classes_from_file:
            self._metainfo['classes'] = classes_of(coco)
        category_ids = category_ids_of(coco, self._metainfo['classes'], self.ann_file)
        if self.test_mode:
            self._metainfo['category_ids'] = category_ids  # for the metric
        label_of = {category_id: label for label, category_id in enumerate(category_ids)}
        image_of = {image['id']: image for image in coco['images']}
        instances_of: dict[int, list[dict]] = defaultdict(list)
        dropped = []
        for annotation in coco['annotations']:
            label = label_of.get(annotation['category_id'])
            if label is None:
                continue
            image = image_of[annotation['image_id']]
            instance: dict = {'bbox_label': label, 'ignore_flag': int(annotation['iscrowd'])}
            if self.test_mode:
                x, y, w, h = annotation['bbox']
                instance |= {
                    'bbox': [x, y, x + w, y + h],
                    'bbox_xywh': [x, y, w, h],
                    'area': annotation['area'],
                }
            elif box := clip_box(annotation['bbox'], image['width'], image['height']):
                instance['bbox'] = list(box)
            else:
                dropped.append(annotation)
                continue
            instances_of[annotation['image_id']].append(instance)
        if dropped:
            MMLogger.get_current_instance().warning(
                f'{self.ann_file}: {len(dropped)} boxes of zero or negative size or outside their image are '
                f'left out, the first is annotation id {dropped[0].get("id")} in image id '
                f'{dropped[0]["image_id"]} with bbox {dropped[0]["bbox"]}'
            )
        data_list = [
            {
                'img_id': image['id'],
                'img_path': os.path.join(self.data_prefix['img'], image['file_name']),
                'height': image['height'],
                'width': image['width'],
                'instances': instances_of[image['id']],
            }
            for image in coco['images']
        ]
        self._num_files = len(data_list)
        for i, item in enumerate(data_list if self.cache_mode else ()):
            item['cache_index'] = i  # of the file, whatever is filtered out or taken as a subset later
        if self.backend_args is None and '://' not in self.data_prefix['img']:
            self._check_images_exist([item['img_path'] for item in data_list])
        return data_list

    def full_init(self) -> None:
        """Read the annotations, if that has not happened yet, and share the memory of `cache_mode`."""
        super().full_init()
        if self.cache_mode and self.image_cache is None:
            self.image_cache = ImageCache(self._num_files, self.cache_limit_gib, self.ann_file)
            if self.cache_mode == 'ahead':
                self.image_cache.fill(len(self), self._read_file)

    def _read_file(self, idx: int) -> None:
        """Get the file of one item, for the cache; what is wrong with it is said when its turn comes."""
        loader = next(step for step in self.pipeline.transforms if isinstance(step, LoadImageFromFile))
        with suppress(OSError, InputError):
            loader.read_file(self.get_data_info(idx))

    def get_data_info(self, idx: int) -> dict:
        """One item, with what its transforms need: the `image_cache` of `cache_mode`, the `batch_seed` of the index."""
        needed = {'image_cache': self.image_cache, 'batch_seed': getattr(idx, 'batch_seed', None)}
        return super().get_data_info(idx) | {k: v for k, v in needed.items() if v is not None}

    def filter_data(self) -> list[dict]:
        """Leave out the images that `filter_cfg` names; test sets stay whole."""
        if not self.data_list:
            raise InputError(f'annotation file {self.ann_file} lists no images')
        if self.test_mode or not self.filter_cfg:
            return self.data_list
        needs_box = self.filter_cfg.get('filter_empty_gt', False)
        min_size = self.filter_cfg.get('min_size', 0)
        small = [item for item in self.data_list if min(item['width'], item['height']) < min_size]
        empty = [item for item in self.data_list if needs_box and not item['instances']]
        for left_out, why in ((small, f'min_size={min_size}'), (empty, 'filter_empty_gt=True: no valid box')):
            for first in left_out[:1]:
                MMLogger.get_current_instance().warning(
                    f'{self.ann_file}: {len(left_out)} of {len(self.data_list)} images are left out ({why}), the first '
                    f'is {first["img_path"]}, {first["width"]} x {first["height"]} pixels by the file'
                )
        left_out_ids = {item['img_id'] for item in small + empty}
        kept = [item for item in self.data_list if item['img_id'] not in left_out_ids]
        if not kept:
            raise InputError(
                f'filter_cfg={dict(self.filter_cfg)} leaves none of the {len(self.data_list)} images of '
                f'{self.ann_file} to train on'
            )
        return kept

    def get_cat_ids(self, idx: int) -> list[int]:
        """The labels in one image, for mmengine's `ClassBalancedDataset`."""
        return [instance['bbox_label'] for instance in self.get_data_info(idx)['instances']]

    def _check_images_exist(self, paths: list[str]) -> None:
        """List each folder once: COCO's 118,287 training images cost one listing, not as many `stat`s."""
        wanted = {os.path.split(path) for path in paths}
        folders = [folder for folder in {folder for folder, _ in wanted} if os.path.isdir(folder or '.')]
        present = {(folder, name) for folder in folders for name in os.listdir(folder or '.')}
        if missing := sorted(wanted - present):
            raise InputError(
                f'{len(missing)} of the {len(paths)} images that {self.ann_file} lists do not exist, the '
                f'first is {os.path.join(*missing[0])}: check data_root and data_prefix=dict(img=...) in the config'
            )
