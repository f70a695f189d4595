"""Random affine transforms."""

import math

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from ddetr.registry import TRANSFORMS

from .boxes import drop_source_keys, select_boxes


@TRANSFORMS.register_module()
class RandomAffine(BaseTransform):
    """Rotate, scale, shear and translate the image randomly around its centre, on a canvas of fixed size.

    A box becomes the bounding box of its four transformed corners, which for large angles is larger than the object.

    Args:
        max_rotate_degree: Maximum angle in either direction.
        max_translate_ratio: Maximum shift in either direction, relative to the canvas.
        scaling_ratio_range: Range of the scale factor.
        max_shear_degree: Maximum shear angle along x and along y, in either direction.
        border: Pixels (x, y) added to each side of the canvas. Negative values crop, such as half of `img_scale` after
            a `Mosaic`.
        border_val: Colour outside the image.
        bbox_clip_border: Clip boxes to the canvas; boxes entirely outside are always dropped.

    Raises:
        ValueError: A scale is not positive or the range not ascending, or, in `transform`, the border leaves no pixels.
    """

    def __init__(
        self,
        max_rotate_degree: float = 10.0,
        max_translate_ratio: float = 0.1,
        scaling_ratio_range: tuple[float, float] = (0.5, 1.5),
        max_shear_degree: float = 2.0,
        border: tuple[int, int] = (0, 0),
        border_val: tuple[int, int, int] = (114, 114, 114),
        bbox_clip_border: bool = True,
    ) -> None:
        if not 0 < scaling_ratio_range[0] <= scaling_ratio_range[1]:
            raise ValueError(f'RandomAffine({scaling_ratio_range=}): must be ascending and positive.')
        self.max_rotate_degree, self.max_shear_degree = max_rotate_degree, max_shear_degree
        self.max_translate_ratio, self.scaling_ratio_range = max_translate_ratio, scaling_ratio_range
        self.border, self.border_val = tuple(border), tuple(border_val)
        self.bbox_clip_border = bbox_clip_border

    def _matrix(self, height: int, width: int, new_h: int, new_w: int) -> np.ndarray:
        """Draw the (3, 3) transform from image pixels to canvas pixels."""
        angle = math.radians(np.random.uniform(-self.max_rotate_degree, self.max_rotate_degree))
        scale = np.random.uniform(*self.scaling_ratio_range)
        shear_x, shear_y = np.tan(np.radians(np.random.uniform(-1, 1, 2) * self.max_shear_degree))
        shift = np.random.uniform(-1, 1, 2) * self.max_translate_ratio * (new_w, new_h)
        to_origin = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        shear = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
        to_canvas = np.array([[1, 0, new_w / 2 + shift[0]], [0, 1, new_h / 2 + shift[1]], [0, 0, 1]])
        return to_canvas @ shear @ turn @ to_origin

    def transform(self, results: dict) -> dict:
        """Changes `img`, `img_shape` and the boxes."""
        height, width = results['img'].shape[:2]
        new_w, new_h = width + 2 * self.border[0], height + 2 * self.border[1]
        if min(new_w, new_h) < 1:
            raise ValueError(
                f'RandomAffine(border={self.border}) leaves nothing of {width} x {height} pixels.'
            )
        matrix = self._matrix(height, width, new_h, new_w)
        # box coordinates start at the edge of the first pixel, OpenCV's at its centre
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        of_pixels = (np.linalg.inv(half) @ matrix @ half)[:2]
        results['img'] = cv2.warpAffine(
            results['img'], of_pixels, (new_w, new_h), borderValue=self.border_val
        )
        results['img_shape'] = (new_h, new_w)
        drop_source_keys(results)
        if 'gt_bboxes' not in results:
            return results
        boxes = results['gt_bboxes']
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)  # (N, 4, xy)
        corners = corners @ matrix[:2, :2].T + matrix[:2, 2]
        around = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        results['gt_bboxes'] = around.astype(np.float32)
        return select_boxes(results, new_w, new_h, self.bbox_clip_border)
