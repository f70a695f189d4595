"""Loading of images and annotations into arrays."""

import logging
from functools import partial

import mmcv
import numpy as np
from mmcv.transforms import BaseTransform, RandomFlip
from mmcv.transforms import LoadAnnotations as McvLoadAnnotations
from mmengine import fileio

from ddetr.registry import TRANSFORMS
from ddetr.utils.errors import InputError

COLOR_TYPES = ('color', 'color_ignore_orientation')


@TRANSFORMS.register_module()
class LoadImageFromFile(BaseTransform):
    """Read `img_path` into `img`, (H, W, 3) BGR uint8, and set `img_shape` and `ori_shape` (h, w).

    Greyscale, CMYK, 16-bit and transparent images are converted to 8-bit BGR. EXIF rotation is applied, as in viewers
    and most annotation tools, unless the annotation file's `width` and `height` match only the unrotated pixels, on
    which the boxes were then drawn. With an `image_cache`, file `cache_index` is read from memory.

    Args:
        to_float32: Return float32 instead of uint8.
        color_type: 'color', or 'color_ignore_orientation' to always read the unrotated pixels.
        imdecode_backend: Backend of `mmcv.imfrombytes`.
        ignore_empty: Skip unreadable images with a warning instead of raising.
        backend_args: Arguments of mmengine's file backend.

    Raises:
        InputError: The file is missing, truncated or not an image, or its size differs from the annotation file.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = 'color',
        imdecode_backend: str = 'cv2',
        ignore_empty: bool = False,
        backend_args: dict | None = None,
    ):
        if color_type not in COLOR_TYPES:
            raise ValueError(f'LoadImageFromFile({color_type=}): choose one of {COLOR_TYPES}')
        self.to_float32, self.ignore_empty, self.backend_args = to_float32, ignore_empty, backend_args
        self.color_type, self.imdecode_backend = color_type, imdecode_backend

    def transform(self, results: dict) -> dict | None:
        """Adds `img`, `img_shape`, `ori_shape`."""
        try:
            img = self._read(results)
        except (OSError, InputError) as error:
            if not self.ignore_empty:
                raise
            logging.getLogger(__name__).warning('skipped: %s', error)
            return None
        results['img'] = img.astype(np.float32) if self.to_float32 else img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def read_file(self, results: dict) -> bytes:
        """Return the content of the image file, from the `image_cache` if there is one."""
        path, cache = results['img_path'], results.get('image_cache')
        read = partial(fileio.get, path, backend_args=self.backend_args)
        try:
            return read() if cache is None else cache.get(results['cache_index'], read)
        except FileNotFoundError:
            raise InputError(f'image {path} does not exist') from None

    def _read(self, results: dict) -> np.ndarray:
        path, height, width = results['img_path'], results.get('height'), results.get('width')
        data = self.read_file(results)
        try:
            img = self._decode(data, self.color_type)
        except Exception as error:  # each decoder raises its own exceptions
            raise InputError(f'image {path} cannot be decoded: {error}') from None
        if height is None or width is None or img.shape[:2] == (height, width):
            return img
        unrotated = self._decode(data, 'color_ignore_orientation')
        if unrotated.shape[:2] == (height, width):
            return unrotated
        raise InputError(
            f'image {path} is {img.shape[1]} x {img.shape[0]} pixels, but its annotation file says '
            f'{width} x {height}: the boxes would not fit'
        )

    def _decode(self, data: bytes, color_type: str) -> np.ndarray:
        img = mmcv.imfrombytes(data, flag=color_type, backend=self.imdecode_backend) if data else None
        if img is None:
            raise ValueError(f'its {len(data)} bytes are truncated or not an image')
        return img


@TRANSFORMS.register_module()
class LoadAnnotations(McvLoadAnnotations):
    """Turn `instances` into the arrays `gt_bboxes` (N, 4) float32 x1 y1 x2 y2 in pixels, `gt_bboxes_labels`
    (N,) int64 and `gt_ignore_flags` (N,) bool, True for crowd regions.

    The boxes match the current image: after a `Resize` or `RandomFlip` they are resized and flipped too. Crops and
    padding must come later.

    Args:
        with_mask: Must be False; masks are not supported.
        box_type: Only 'hbox', axis-aligned boxes.
        **kwargs: Arguments of mmcv's `LoadAnnotations`.

    Raises:
        ValueError: Masks or another box type are requested.
    """

    def __init__(self, with_mask: bool = False, box_type: str = 'hbox', **kwargs):
        if with_mask:
            raise ValueError(
                'LoadAnnotations(with_mask=True): instance masks are not supported; remove with_mask'
            )
        if box_type != 'hbox':
            raise ValueError(f"LoadAnnotations(box_type={box_type!r}): only 'hbox' is supported")
        super().__init__(**kwargs)

    def transform(self, results: dict) -> dict:
        """Adds the three arrays."""
        results = super().transform(results)
        if self.with_bbox:
            results['gt_bboxes'] = self._as_image(results['gt_bboxes'], results)
            flags = [instance.get('ignore_flag', 0) for instance in results['instances']]
            results['gt_ignore_flags'] = np.array(flags, dtype=bool)  # (N,)
        return results

    def _as_image(self, boxes: np.ndarray, results: dict) -> np.ndarray:
        """Resize, clip and flip boxes (N, 4) to match the current image."""
        height, width = results.get('img_shape', (np.inf, np.inf))[:2]
        if 'scale_factor' in results:
            boxes = boxes * np.tile(results['scale_factor'], 2)
            boxes = np.clip(boxes, 0, [width, height, width, height])
        if results.get('flip'):
            boxes = RandomFlip(prob=0.0)._flip_bbox(boxes, (height, width), results['flip_direction'])
        return boxes
