"""Random colour augmentations. They change neither the boxes nor the image's dtype."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from ddetr.registry import TRANSFORMS


@TRANSFORMS.register_module()
class PhotoMetricDistortion(BaseTransform):
    """Change brightness, contrast, saturation, hue and channel order, each with probability 0.5.

    This is SSD's augmentation (Liu et al., 2016, section 2.2). Contrast is changed before or after saturation and hue,
    with equal probability. Values are clipped to [0, 255].

    Args:
        brightness_delta: Maximum brightness shift in either direction, on a scale of 0 to 255.
        contrast_range: Range of the contrast factor.
        saturation_range: Range of the saturation factor.
        hue_delta: Maximum hue shift in degrees, in either direction.
        swap_channels: Permute the channels; set it to False if colour distinguishes classes.
    """

    def __init__(
        self,
        brightness_delta: float = 32,
        contrast_range: tuple[float, float] = (0.5, 1.5),
        saturation_range: tuple[float, float] = (0.5, 1.5),
        hue_delta: float = 18,
        swap_channels: bool = True,
    ) -> None:
        self.brightness_delta, self.hue_delta = brightness_delta, hue_delta
        self.contrast_range, self.saturation_range = contrast_range, saturation_range
        self.swap_channels = swap_channels

    def transform(self, results: dict) -> dict:
        """Changes `img` (H, W, 3) BGR."""
        img = results['img'].astype(np.float32)
        # always make all draws in a fixed order, so that one option does not affect the others
        chosen = np.random.uniform(size=5) < 0.5
        brightness = np.random.uniform(-self.brightness_delta, self.brightness_delta)
        contrast = np.random.uniform(*self.contrast_range)
        saturation = np.random.uniform(*self.saturation_range)
        hue = np.random.uniform(-self.hue_delta, self.hue_delta)
        contrast_first = np.random.uniform() < 0.5
        order = np.random.permutation(3)
        if chosen[0]:
            img += brightness
        if chosen[1] and contrast_first:
            img *= contrast
        if chosen[2] or chosen[3]:
            hsv = cv2.cvtColor(np.clip(img, 0, 255) / 255, cv2.COLOR_BGR2HSV)  # hue 0..360, the others 0..1
            if chosen[2]:
                hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
            if chosen[3]:
                hsv[..., 0] = (hsv[..., 0] + hue) % 360
            img = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) * 255
        if chosen[1] and not contrast_first:
            img *= contrast
        if chosen[4] and self.swap_channels:
            img = img[..., order]
        results['img'] = _as_before(img, results['img'])
        return results


@TRANSFORMS.register_module()
class YOLOXHSVRandomAug(BaseTransform):
    """Shift hue, saturation and value by random amounts, each with probability 0.5 (Ge et al., "YOLOX", 2021).

    Args:
        hue_delta: Maximum hue shift in either direction, in OpenCV's units of 2 degrees.
        saturation_delta, value_delta: Maximum shifts in either direction, on a scale of 0 to 255.
    """

    def __init__(self, hue_delta: int = 5, saturation_delta: int = 30, value_delta: int = 30) -> None:
        self.hue_delta, self.saturation_delta, self.value_delta = hue_delta, saturation_delta, value_delta

    def transform(self, results: dict) -> dict:
        """Changes `img` (H, W, 3) BGR."""
        shifts = np.random.uniform(-1, 1, 3) * (self.hue_delta, self.saturation_delta, self.value_delta)
        hue, saturation, value = (shifts * np.random.randint(0, 2, 3)).astype(np.float32)
        img = np.clip(results['img'], 0, 255).astype(np.uint8)
        hsv = cv2.cvtColor(img, cv2.COLOR_BGR2HSV).astype(np.float32)  # hue 0..180, the others 0..255
        hsv[..., 0] = (hsv[..., 0] + hue) % 180
        hsv[..., 1:] = np.clip(hsv[..., 1:] + (saturation, value), 0, 255)
        results['img'] = _as_before(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2BGR), results['img'])
        return results


def _as_before(img: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Clip to [0, 255], and round if the image had an integer dtype."""
    img = np.clip(img, 0, 255)
    return (np.rint(img) if before.dtype == np.uint8 else img).astype(before.dtype)
