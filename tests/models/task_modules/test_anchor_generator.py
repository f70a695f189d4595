import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from ddetr.models.task_modules import AnchorGenerator

CPU = torch.device('cpu')


def test_anchors_have_their_area_ratio_and_place():
    generator = AnchorGenerator(strides=[4, 8], ratios=[0.5, 2.0], scales=[8, 16], center_offset=0.5)
    first, second = generator.grid_anchors([(3, 2), (2, 1)], (12, 8), CPU)
    expected = []
    for y in range(3):
        for x in range(2):
            for ratio in (0.5, 2.0):
                for scale in (8, 16):
                    w, h = 4 * scale / math.sqrt(ratio), 4 * scale * math.sqrt(ratio)
                    cx, cy = 4 * (x + 0.5), 4 * (y + 0.5)
                    expected.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    torch.testing.assert_close(first, torch.tensor(expected))
    assert second.shape == (2 * 1 * 4, 4)
    w, h = 64 * math.sqrt(2), 64 / math.sqrt(2)  # stride 8, scale 8, ratio 0.5
    torch.testing.assert_close(
        second[4], torch.tensor([4 - w / 2, 12 - h / 2, 4 + w / 2, 12 + h / 2])
    )  # second row


def test_base_sizes_replace_the_strides_as_unit():
    generator = AnchorGenerator(strides=[4], ratios=[1.0], scales=[2], base_sizes=[10])
    (anchors,) = generator.grid_anchors([(1, 2)], (4, 8), CPU)
    assert anchors.tolist() == [[-10, -10, 10, 10], [-6, -10, 14, 10]]


def test_rounded_anchors_with_inferred_strides_equal_torchvision():
    sizes, strides = [(20, 28), (10, 14), (5, 7), (3, 4)], [8, 16, 32, 64]  # of a 160 x 224 image
    ours = AnchorGenerator(strides, [0.5, 1.0, 2.0], [4], round_base_anchors=True, infer_strides=True)
    theirs = TorchvisionAnchors(tuple((4 * s,) for s in strides), ((0.5, 1.0, 2.0),) * 4)
    images = ImageList(torch.zeros(1, 3, 160, 224), [(160, 224)])
    expected = theirs(images, [torch.zeros(1, 1, *size) for size in sizes])[0]
    assert torch.equal(torch.cat(ours.grid_anchors(sizes, (160, 224), CPU)), expected)


def test_wrong_number_of_levels_raises():
    generator = AnchorGenerator(strides=[4, 8], ratios=[1.0], scales=[8])
    with pytest.raises(ValueError, match=r'2 strides .* got 1 levels'):
        generator.grid_anchors([(3, 2)], (12, 8), CPU)
