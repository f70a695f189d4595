"""From arrays to what a detector's loader hands on."""

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
    """(H, W, C) -> (C, H, W), by OpenCV where it is faster: not for flipped views, which it would copy first."""
    if image.dtype not in (np.uint8, np.float32) or min(image.strides) < 0 or not image.size:
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), image.dtype)
    cv2.split(image, list(planes))  # into these arrays
    return planes


@TRANSFORMS.register_module()
class PackDetInputs(BaseTransform):
    """The last step of a pipeline: `dict(inputs=(3, H, W) tensor, data_samples=DetDataSample)`.

    Where annotations were loaded, the sample's `gt_instances` are the plain objects and its
    `ignored_instances` the crowd regions. Its metainfo `annotations` has the dataset's own, from which it is evaluated.

    Args:
        meta_keys: results of the pipeline that the sample keeps as metainfo; keys that no step has set are skipped.
    """

    def __init__(self, meta_keys: Sequence[str] = META_KEYS):
        self.meta_keys = meta_keys

    def transform(self, results: dict) -> dict:
        """The dict described at the class."""
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
