"""Geometric transforms of images and boxes; flipping and padding come from mmcv."""

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms import Resize as McvResize
from mmcv.transforms.utils import cache_randomness

from ddetr.registry import TRANSFORMS

from .batch_draws import drawn_for_batch
from .boxes import check_prob, drop_source_keys, keep_boxes, select_boxes

CROP_TYPES = ('absolute', 'absolute_range', 'relative', 'relative_range')


@TRANSFORMS.register_module()
class Resize(McvResize):
    """mmcv's Resize, with the cumulative `scale_factor` (w, h), which maps predictions back to the original image."""

    def transform(self, results: dict) -> dict:
        """Changes `img`, `img_shape`, `scale_factor` and the boxes."""
        before = results.get('scale_factor', (1.0, 1.0))
        results = super().transform(results)
        now = results['scale_factor']
        results['scale_factor'] = (before[0] * now[0], before[1] * now[1])
        return results


@TRANSFORMS.register_module()
class RandomCrop(BaseTransform):
    """Crop a random window; boxes are clipped to it, and boxes entirely outside are dropped.

    Args:
        crop_size: Two numbers, depending on `crop_type`. 'absolute': (w, h) in pixels. 'absolute_range': height and
            width are each drawn from [crop_size[0], crop_size[1]] pixels. 'relative': (w, h) as fractions of the image.
            'relative_range': (h, w), each fraction drawn from [crop_size[i], 1]. The window never exceeds the image.
        crop_type: Meaning of `crop_size`.
        allow_negative_crop: Whether a window without boxes is allowed; if not, the dataset chooses another image.
        recompute_bbox: Accepted for MMDetection's configs; it concerns masks and has no effect here.
        bbox_clip_border: Clip boxes to the window.

    Raises:
        ValueError: `crop_type` is unknown, a size is not positive, or a fraction is above 1.
    """

    def __init__(
        self,
        crop_size: tuple[float, float],
        crop_type: str = 'absolute',
        allow_negative_crop: bool = False,
        recompute_bbox: bool = False,
        bbox_clip_border: bool = True,
    ):
        if crop_type not in CROP_TYPES:
            raise ValueError(f'RandomCrop({crop_type=}): choose one of {CROP_TYPES}')
        relative = crop_type.startswith('relative')
        if min(crop_size) <= 0 or (relative and max(crop_size) > 1):
            bound = 'in (0, 1]' if relative else 'positive'
            raise ValueError(f'RandomCrop({crop_type=}, {crop_size=}): sizes must be {bound}')
        if crop_type == 'absolute_range' and crop_size[0] > crop_size[1]:
            raise ValueError(f'RandomCrop({crop_size=}): the range must be ascending')
        self.crop_size = tuple(crop_size)
        self.crop_type = crop_type
        self.allow_negative_crop = allow_negative_crop
        self.bbox_clip_border = bbox_clip_border

    @cache_randomness
    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw x, y, w, h of a random window in an image of this size."""
        first, second = self.crop_size
        shape = np.array([height, width])
        if self.crop_type == 'absolute':
            crop_w, crop_h = int(first), int(second)
        elif self.crop_type == 'absolute_range':
            low, high = np.minimum(shape, int(first)), np.minimum(shape, int(second))
            crop_h, crop_w = np.random.randint(low, high + 1)
        elif self.crop_type == 'relative':
            crop_w, crop_h = round(width * first), round(height * second)
        else:
            crop_h, crop_w = np.rint(shape * np.random.uniform(self.crop_size, 1)).astype(int)
        crop_w, crop_h = max(1, min(int(crop_w), width)), max(1, min(int(crop_h), height))
        x, y = np.random.randint(0, width - crop_w + 1), np.random.randint(0, height - crop_h + 1)
        return x, y, crop_w, crop_h

    @drawn_for_batch
    def transform(self, results: dict) -> dict | None:
        """Changes `img`, `img_shape` and the boxes; returns None if the window has no boxes and needs some."""
        x, y, crop_w, crop_h = self._window(*results['img'].shape[:2])
        results['img'] = results['img'][y : y + crop_h, x : x + crop_w]
        results['img_shape'] = results['img'].shape[:2]
        if 'gt_bboxes' not in results:
            return results
        results['gt_bboxes'] = results['gt_bboxes'] - np.array([x, y, x, y], dtype=np.float32)  # (N, 4)
        select_boxes(results, crop_w, crop_h, self.bbox_clip_border)
        if not len(results['gt_bboxes']) and not self.allow_negative_crop:
            return None
        return results

    def __repr__(self) -> str:
        return (
            f'RandomCrop(crop_size={self.crop_size}, crop_type={self.crop_type!r}, '
            f'allow_negative_crop={self.allow_negative_crop}, bbox_clip_border={self.bbox_clip_border})'
        )


@TRANSFORMS.register_module()
class FilterAnnotations(BaseTransform):
    """Drop boxes that became too small by cropping or resizing.

    Args:
        min_gt_bbox_wh: Minimum (w, h) in pixels.
        keep_empty: False keeps images without remaining boxes. True, MMDetection's default despite the name, makes the
            dataset choose another image instead.
    """

    def __init__(self, min_gt_bbox_wh: tuple[float, float] = (1, 1), keep_empty: bool = True):
        self.min_gt_bbox_wh = min_gt_bbox_wh
        self.keep_empty = keep_empty

    def transform(self, results: dict) -> dict | None:
        """Changes the boxes; may return None, see `keep_empty`."""
        sizes_wh = results['gt_bboxes'][:, 2:] - results['gt_bboxes'][:, :2]  # (N, 2)
        keep = (sizes_wh > np.array(self.min_gt_bbox_wh)).all(axis=1)
        if not keep.any() and self.keep_empty:
            return None
        keep_boxes(results, keep)
        return results


@TRANSFORMS.register_module()
class RandomRotate90(BaseTransform):
    """Rotate the image by 90 or 270 degrees, for images without a natural orientation, such as cells or aerial views.

    For 180 degrees, use `RandomFlip` with direction 'diagonal'.

    Args:
        prob: Probability of a rotation; both directions are equally likely.
    """

    def __init__(self, prob: float = 0.5) -> None:
        check_prob('RandomRotate90', prob)
        self.prob = prob

    @drawn_for_batch
    def transform(self, results: dict) -> dict:
        """Changes `img`, `img_shape` and the boxes."""
        if np.random.uniform() >= self.prob:
            return results
        clockwise = np.random.uniform() < 0.5
        height, width = results['img'].shape[:2]
        results['img'] = np.ascontiguousarray(np.rot90(results['img'], -1 if clockwise else 1))
        results['img_shape'] = results['img'].shape[:2]
        drop_source_keys(results)
        if 'gt_bboxes' in results:
            x1, y1, x2, y2 = results['gt_bboxes'].T
            turned = (height - y2, x1, height - y1, x2) if clockwise else (y1, width - x2, y2, width - x1)
            results['gt_bboxes'] = np.stack(turned, axis=1)
        return results
