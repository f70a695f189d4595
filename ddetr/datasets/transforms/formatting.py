"""Conversion of arrays to tensors and data samples."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData

from ddetr.registry import TRANSFORMS
from ddetr.structures import Annotations, DetDataSample

META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def _instances(results: dict, chosen: np.ndarray) -> InstanceData:
    return InstanceData(
        bboxes=torch.from_numpy(results['gt_bboxes'][chosen].astype(np.float32)),  # (N, 4)
        labels=torch.from_numpy(results['gt_bboxes_labels'][chosen]),  # (N,)
    )


def _planes(image: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (C, H, W); by OpenCV where it is faster, but not for flipped views, which it would copy first."""
    if image.dtype not in (np.uint8, np.float32) or min(image.strides) < 0 or not image.size:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), image.dtype)
    cv2.split(image, list(planes))  # writes into these arrays
    return planes


@TRANSFORMS.register_module()
class PackDetInputs(BaseTransform):
    """Last transform of a pipeline: `dict(inputs=(3, H, W) tensor, data_samples=DetDataSample)`.

    If annotations were loaded, `gt_instances` are the regular objects and `ignored_instances` the crowd regions. The
    metainfo `annotations` keeps the dataset's original annotations for evaluation.

    Args:
        meta_keys: Keys of the results to keep as metainfo; missing keys are skipped.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS):
        self.meta_keys = meta_keys

    def transform(self, results: dict) -> dict:
        """Return the dict described in the class docstring."""
        image = torch.from_numpy(_planes(results['img']))  # (3, H, W)
        sample = DetDataSample(metainfo={key: results[key] for key in self.meta_keys if key in results})
        if 'instances' in results:
            sample.set_metainfo({'annotations': Annotations.of(results['instances'])})
        if 'gt_bboxes' in results:
            ignored = results['gt_ignore_flags']
            sample.gt_instances = _instances(results, ~ignored)
            sample.ignored_instances = _instances(results, ignored)
        return {'inputs': image, 'data_samples': sample}

    def __repr__(self) -> str:
        return f'PackDetInputs(meta_keys={self.meta_keys})'
