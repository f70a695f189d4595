"""Random batches in the format of a data loader."""

import torch
from mmengine.structures import InstanceData
from torch import Tensor

from ddetr.structures import DetDataSample

OBJECTS_PER_IMAGE = 7  # COCO's average


def random_batch(images: int, size: tuple[int, int], num_classes: int) -> dict[str, list]:
    """Return `images` random images of (h, w) pixels with random boxes, as input of the data preprocessor."""
    inputs = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(images)]
    return labelled_batch(inputs, num_classes)


def labelled_batch(inputs: list[Tensor], num_classes: int) -> dict[str, list]:
    """Return a batch of images (3, h, w) uint8 with random boxes."""
    samples: list[DetDataSample] = []
    for image in inputs:
        shape = tuple(image.shape[1:])
        metainfo = {'img_shape': shape, 'ori_shape': shape, 'scale_factor': (1.0, 1.0)}
        corners = torch.rand(OBJECTS_PER_IMAGE, 2) * 0.7  # (N, 2)
        extents = 0.1 + torch.rand(OBJECTS_PER_IMAGE, 2) * 0.2
        boxes = torch.cat([corners, corners + extents], 1) * torch.tensor(shape[::-1] * 2)
        sample = DetDataSample(metainfo={'img_id': len(samples), **metainfo})
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.randint(num_classes, (OBJECTS_PER_IMAGE,))
        )
        sample.ignored_instances = sample.gt_instances[:0]  # empty, like in `PackDetInputs`
        samples.append(sample)
    return {'inputs': inputs, 'data_samples': samples}
