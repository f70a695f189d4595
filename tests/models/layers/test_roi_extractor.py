from collections import OrderedDict

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from ddetr.models.layers import SingleRoIExtractor

STRIDES = [4, 8, 16, 32]


def extractor(**roi_layer) -> SingleRoIExtractor:
    return SingleRoIExtractor(
        roi_layer={'type': 'RoIAlign', 'output_size': 3, **roi_layer}, out_channels=5, featmap_strides=STRIDES
    )


def pyramid() -> list[torch.Tensor]:
    return [torch.randn(2, 5, 512 // s, 640 // s) for s in STRIDES]


def regions(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 200
    return torch.cat([corner, corner + 4 + torch.rand(count, 2) * 430], dim=1)


def test_equals_torchvisions_multi_scale_roi_align():
    feats, boxes = pyramid(), [regions(40), torch.cat([regions(25), torch.tensor([[3.0, 5, 600, 500]])])]
    theirs = MultiScaleRoIAlign(['0', '1', '2', '3'], output_size=3, sampling_ratio=2)
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(feats)), boxes, [(512, 640)] * 2)
    ours = extractor(sampling_ratio=2, aligned=False)
    assert set(ours.levels_of(torch.cat(boxes)).tolist()) == {0, 1, 2, 3}
    # levels that RoIs do not come from may follow, as the RPN's coarsest does
    torch.testing.assert_close(ours([*feats, torch.zeros(2, 5, 8, 10)], boxes), expected)


def test_by_default_it_is_aligned_and_samples_each_cell():
    feats, box = pyramid(), torch.tensor([[30.0, 50.0, 61.0, 93.0]])  # of the finest level
    ours = extractor()(feats, [torch.zeros(0, 4), box])
    expected = roi_align(feats[0][1:], [box], 3, spatial_scale=1 / 4, sampling_ratio=-1, aligned=True)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    ('side', 'level'), [(1, 0), (111.9, 0), (112, 1), (223, 1), (224, 2), (448, 3), (5000, 3)]
)
def test_the_level_follows_equation_1_of_the_fpn_paper(side, level):
    assert extractor().levels_of(torch.tensor([[0.0, 0.0, side, side]])).tolist() == [level]


def test_no_region_gives_no_features():
    assert extractor()(pyramid(), [torch.zeros(0, 4)] * 2).shape == (0, 5, 3, 3)


def test_half_precision_features_are_pooled_at_full_precision_coordinates():
    feats = pyramid()
    box = [torch.zeros(0, 4), torch.tensor([[601.37, 400.61, 637.91, 440.17]])]
    pooled = extractor()([f.bfloat16() for f in feats], box)
    assert pooled.dtype == torch.bfloat16
    exact = extractor()([f.bfloat16().float() for f in feats], box)
    torch.testing.assert_close(pooled.float(), exact, atol=1e-2, rtol=1e-2)
