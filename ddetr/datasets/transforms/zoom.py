"""Random zoom out and zoom in, introduced by SSD and still used by recent detectors."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from ddetr.registry import TRANSFORMS

from .batch_draws import drawn_for_batch
from .boxes import check_prob, drop_source_keys, keep_boxes, select_boxes


@TRANSFORMS.register_module()
class Expand(BaseTransform):
    """Place the image at random on a larger canvas, so that objects become smaller (Liu et al., "SSD", 2016).

    Args:
        mean: Colour of the canvas; in RGB order with `to_rgb`, as in MMDetection.
        to_rgb: Whether `mean` is RGB while the image is BGR.
        ratio_range: Range of the scale factor of both sides.
        prob: Probability of expanding.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = (0, 0, 0),
        to_rgb: bool = True,
        ratio_range: tuple[float, float] = (1, 4),
        prob: float = 0.5,
    ) -> None:
        check_prob('Expand', prob)
        if not 1 <= ratio_range[0] <= ratio_range[1]:
            raise ValueError(f'Expand({ratio_range=}): must be ascending and at least 1.')
        self.mean = tuple(mean)[::-1] if to_rgb else tuple(mean)
        self.ratio_range, self.prob = ratio_range, prob

    @drawn_for_batch
    def transform(self, results: dict) -> dict:
        """Changes `img`, `img_shape` and the boxes."""
        if np.random.uniform() >= self.prob:
            return results
        img = results['img']
        height, width = img.shape[:2]
        ratio = np.random.uniform(*self.ratio_range)
        new_h, new_w = int(height * ratio), int(width * ratio)
        x, y = np.random.randint(0, new_w - width + 1), np.random.randint(0, new_h - height + 1)
        canvas = np.empty((new_h, new_w, img.shape[2]), dtype=img.dtype)
        canvas[:] = np.array(self.mean).astype(img.dtype)
        canvas[y : y + height, x : x + width] = img
        results.update(img=canvas, img_shape=canvas.shape[:2])
        drop_source_keys(results)
        if 'gt_bboxes' in results:
            results['gt_bboxes'] = results['gt_bboxes'] + np.array([x, y, x, y], dtype=np.float32)
        return results


@TRANSFORMS.register_module()
class MinIoURandomCrop(BaseTransform):
    """Crop a random window with a randomly drawn minimum IoU with its objects (Liu et al., "SSD", 2016).

    Boxes whose centre lies in the window are kept and clipped to it.

    Args:
        min_ious: Minimum IoUs of the window with the kept boxes to draw from; the draw also includes 1 (the whole
            image) and 0 (any window).
        min_crop_size: Minimum side of the window, relative to the image.
        bbox_clip_border: Clip boxes to the window.
    """

    def __init__(
        self,
        min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        bbox_clip_border: bool = True,
    ) -> None:
        self.modes = (1.0, *min_ious, 0.0)
        self.min_crop_size, self.bbox_clip_border = min_crop_size, bbox_clip_border

    @drawn_for_batch
    def transform(self, results: dict) -> dict:
        """Changes `img`, `img_shape` and the boxes; images without boxes are not cropped."""
        boxes = results['gt_bboxes']
        while len(boxes) and (mode := np.random.choice(self.modes)) < 1:
            for _ in range(50):
                window = self._window(*results['img'].shape[:2])
                if window is not None and self._fits(window, boxes, mode):
                    return self._crop(results, window)
        return results

    def _window(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Draw x, y, w, h; None if the longer side is more than twice the shorter."""
        w, h = (int(np.random.uniform(self.min_crop_size, 1) * side) for side in (width, height))
        if min(w, h) < 1 or max(w, h) > 2 * min(w, h):
            return None
        return np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1), w, h

    def _fits(self, window: tuple[int, int, int, int], boxes: np.ndarray, mode: float) -> bool:
        kept = boxes[_centres_inside(boxes, window)]
        if not len(kept):
            return False
        x, y, w, h = window
        sides = np.minimum(kept[:, 2:], [x + w, y + h]) - np.maximum(kept[:, :2], [x, y])
        overlap = np.clip(sides, 0, None).prod(axis=1)
        union = (kept[:, 2:] - kept[:, :2]).prod(axis=1) + w * h - overlap
        return bool((overlap / union).min() >= mode)

    def _crop(self, results: dict, window: tuple[int, int, int, int]) -> dict:
        x, y, w, h = window
        keep_boxes(results, _centres_inside(results['gt_bboxes'], window))
        results['img'] = results['img'][y : y + h, x : x + w]
        results['img_shape'] = (h, w)
        drop_source_keys(results)
        results['gt_bboxes'] = results['gt_bboxes'] - np.array([x, y, x, y], dtype=np.float32)
        return select_boxes(results, w, h, self.bbox_clip_border)


def _centres_inside(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """(N,) bool."""
    x, y, w, h = window
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return ((centres > [x, y]) & (centres < [x + w, y + h])).all(axis=1)
