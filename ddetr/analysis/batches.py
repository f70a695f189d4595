"""Batches as a data loader gives them, of random images."""

from typing import Any

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ddetr.structures import DetDataSample

OBJECTS_PER_IMAGE = 7  # COCO's average


def random_batch(images: int, size: tuple[int, int], num_classes: int) -> dict[str, list]:
    """`images` random images of (h, w) pixels with random boxes, as a model's data preprocessor takes them."""
    inputs = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(images)]
    return labelled_batch(inputs, num_classes)


def labelled_batch(inputs: list[Tensor], num_classes: int) -> dict[str, list]:
    """Images (3, h, w) uint8 with random boxes."""
    samples: list[DetDataSample] = []
    for image in inputs:
        height, width = image.shape[1:]
        metainfo: dict[str, Any] = {
            'img_id': len(samples),
            'img_shape': (height, width),
            'ori_shape': (height, width),
            'scale_factor': (1.0, 1.0),
        }
        sides = torch.tensor([width, height, width, height])
        corners = torch.rand(OBJECTS_PER_IMAGE, 2) * 0.7  # (N, 2)
        extents = 0.1 + torch.rand(OBJECTS_PER_IMAGE, 2) * 0.2
        sample = DetDataSample(metainfo=metainfo)
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + extents], 1) * sides,
            labels=torch.randint(num_classes, (OBJECTS_PER_IMAGE,)),
        )
        # none is to be ignored, as `PackDetInputs` writes it
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)
        )
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}
