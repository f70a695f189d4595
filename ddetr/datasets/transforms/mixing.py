"""Transforms that combine several images, for use in a `MultiImageMixDataset`."""

from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from ddetr.registry import TRANSFORMS

from .boxes import check_prob, drop_source_keys, select_boxes, set_boxes


@TRANSFORMS.register_module()
class Mosaic(BaseTransform):
    """Combine four images around a random centre (Bochkovskiy et al., "YOLOv4", 2020, section 3.3).

    Each image is resized to fit `img_scale`, keeping its aspect ratio, and placed with one corner at the centre;
    anything outside the canvas is cut off. The result is twice as large as `img_scale`, so it should be followed by a
    `Resize`, a `RandomResize` or a `RandomAffine` with `border`. Boxes entirely outside are dropped, others clipped.

    Args:
        img_scale: Size (w, h) of each image in pixels.
        center_ratio_range: Range of the centre's coordinates, as multiples of `img_scale`.
        bbox_clip_border: Clip boxes to the mosaic.
        pad_val: Fill value of uncovered pixels, for all channels.
        prob: Probability of a mosaic; otherwise the sample is unchanged.

    Raises:
        ValueError: `prob` is outside [0, 1], or the centre outside the mosaic.
    """

    def __init__(
        self,
        img_scale: tuple[int, int] = (640, 640),
        center_ratio_range: tuple[float, float] = (0.5, 1.5),
        bbox_clip_border: bool = True,
        pad_val: float = 114.0,
        prob: float = 1.0,
    ) -> None:
        check_prob('Mosaic', prob)
        if not 0 < center_ratio_range[0] <= center_ratio_range[1] < 2:
            raise ValueError(
                f'Mosaic({center_ratio_range=}): must be ascending and between 0 and 2, exclusive.'
            )
        self.img_scale, self.center_ratio_range = tuple(img_scale), center_ratio_range
        self.bbox_clip_border, self.pad_val, self.prob = bbox_clip_border, pad_val, prob

    def get_indices(self, dataset: Any) -> list[int]:
        """Draw three more images."""
        return np.random.randint(0, len(dataset), 3).tolist()

    def transform(self, results: dict) -> dict:
        """Changes `img`, `img_shape` and the boxes."""
        if np.random.uniform() >= self.prob:
            return results
        width, height = self.img_scale
        center_x, center_y = (
            int(side * np.random.uniform(*self.center_ratio_range)) for side in self.img_scale
        )
        first = results['img']
        canvas = np.full((2 * height, 2 * width, *first.shape[2:]), self.pad_val, dtype=first.dtype)
        parts = []
        for place, part in enumerate([results, *results['mix_results']]):
            img, boxes = _fit(part, width, height)
            h, w = img.shape[:2]
            x = (
                center_x - w if place in (0, 2) else center_x
            )  # top left, top right, bottom left, bottom right
            y = center_y - h if place in (0, 1) else center_y
            left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, 2 * width), min(y + h, 2 * height)
            canvas[top:bottom, left:right] = img[top - y : bottom - y, left - x : right - x]
            parts.append({**part, 'gt_bboxes': boxes + np.array([x, y, x, y], dtype=np.float32)})
        results.update(img=canvas, img_shape=canvas.shape[:2])
        drop_source_keys(results)
        return set_boxes(results, parts, self.bbox_clip_border)


@TRANSFORMS.register_module()
class MixUp(BaseTransform):
    """Average the image with another one, keeping the boxes of both (Ge et al., "YOLOX", 2021).

    The other image is resized to fit `img_scale` times a random factor, keeping its aspect ratio, and randomly
    flipped. It is cropped at random or padded to the size of the first image.

    Args:
        img_scale: Size (w, h) in pixels.
        ratio_range: Range of the random factor.
        flip_ratio: Probability of a horizontal flip of the other image.
        pad_val: Fill value around the other image, for all channels.
        max_iters: Maximum number of attempts to find another image with boxes.
        bbox_clip_border: Clip the other image's boxes to the result.
        prob: Probability of mixing; otherwise the sample is unchanged.

    Raises:
        ValueError: `prob` or `flip_ratio` is outside [0, 1].
    """

    def __init__(
        self,
        img_scale: tuple[int, int] = (640, 640),
        ratio_range: tuple[float, float] = (0.5, 1.5),
        flip_ratio: float = 0.5,
        pad_val: float = 114.0,
        max_iters: int = 15,
        bbox_clip_border: bool = True,
        prob: float = 1.0,
    ) -> None:
        check_prob('MixUp', prob)
        check_prob('MixUp', flip_ratio, 'flip_ratio')
        self.img_scale, self.ratio_range, self.flip_ratio = tuple(img_scale), ratio_range, flip_ratio
        self.pad_val, self.max_iters = pad_val, max_iters
        self.bbox_clip_border, self.prob = bbox_clip_border, prob

    def get_indices(self, dataset: Any) -> list[int]:
        """Draw one more image, with boxes if one is found within `max_iters` attempts."""
        index = 0
        for _ in range(self.max_iters):
            index = int(np.random.randint(0, len(dataset)))
            if dataset.get_data_info(index)['instances']:
                break
        return [index]

    def transform(self, results: dict) -> dict:
        """Changes `img` and the boxes; the size is unchanged."""
        (other,) = results['mix_results']
        if np.random.uniform() >= self.prob or not len(other.get('gt_bboxes', ())):
            return results
        img = results['img']
        height, width = img.shape[:2]
        factor = np.random.uniform(*self.ratio_range)
        second, boxes = _fit(other, *(max(1, round(side * factor)) for side in self.img_scale))
        if np.random.uniform() < self.flip_ratio:
            second = second[:, ::-1]
            boxes[:, [0, 2]] = second.shape[1] - boxes[:, [2, 0]]
        canvas = np.full(img.shape, self.pad_val, dtype=img.dtype)
        spare_y, spare_x = second.shape[0] - height, second.shape[1] - width
        y, x = np.random.randint(0, max(spare_y, 0) + 1), np.random.randint(0, max(spare_x, 0) + 1)
        window = second[y : y + height, x : x + width]
        canvas[: window.shape[0], : window.shape[1]] = window
        results['img'] = ((img.astype(np.float32) + canvas) / 2).astype(img.dtype)
        drop_source_keys(results)
        moved = {**other, 'gt_bboxes': boxes - np.array([x, y, x, y], dtype=np.float32)}
        moved = select_boxes(moved, width, height, self.bbox_clip_border)
        return set_boxes(results, [results, moved], clip=False)


def _fit(results: dict, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize image and boxes (N, 4) to the largest size that fits, keeping the aspect ratio."""
    img = results['img']
    scale = min(width / img.shape[1], height / img.shape[0])
    new_w, new_h = max(1, round(img.shape[1] * scale)), max(1, round(img.shape[0] * scale))
    factors = np.array([new_w / img.shape[1], new_h / img.shape[0]] * 2, dtype=np.float32)
    resized = cv2.resize(img, (new_w, new_h), interpolation=cv2.INTER_LINEAR)
    return resized, results.get('gt_bboxes', np.zeros((0, 4), np.float32)) * factors
