import math

import torch
from torchvision.models.detection._utils import BoxCoder

from ddetr.models.task_modules import DeltaXYWHBBoxCoder


def boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 100
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * 60], dim=1)


def test_encode_and_decode_equal_torchvision():
    ours = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2), clip_shrinking=False)
    theirs = BoxCoder((10.0, 10.0, 5.0, 5.0))
    a, b = boxes(50), boxes(50)
    torch.testing.assert_close(ours.encode(a, b), theirs.encode_single(b, a))
    deltas = torch.randn(50, 4) * 30  # far beyond the clipping of sides
    torch.testing.assert_close(ours.decode(a, deltas), theirs.decode_single(deltas, a))


def test_decode_inverts_encode_with_means():
    coder = DeltaXYWHBBoxCoder(target_means=(0.1, -0.2, 0.3, 0.0), target_stds=(0.1, 0.2, 0.3, 0.4))
    a, b = boxes(20), boxes(20)
    torch.testing.assert_close(coder.decode(a, coder.encode(a, b)), b, atol=1e-3, rtol=1e-4)
    by_hand = ((b[0, 0] + b[0, 2]) / 2 - (a[0, 0] + a[0, 2]) / 2) / (a[0, 2] - a[0, 0])
    torch.testing.assert_close(coder.encode(a, b)[0, 0], (by_hand - 0.1) / 0.1)


def test_sides_change_by_at_most_the_given_factor_both_ways():
    coder = DeltaXYWHBBoxCoder(wh_ratio_clip=1 / 8)
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    deltas = torch.tensor([[0.0, 0.0, 100.0, -100.0]])
    torch.testing.assert_close(coder.decode(box, deltas), torch.tensor([[-56.0, 7.0, 72.0, 9.0]]))
    loose = DeltaXYWHBBoxCoder(wh_ratio_clip=1 / 8, clip_shrinking=False).decode(box, deltas)
    assert loose[0, 3] - loose[0, 1] < 1e-6


def test_decoded_boxes_are_clipped_to_the_image_unless_told_otherwise():
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    grow = torch.tensor([[0.0, 0.0, math.log(4), math.log(4)]])
    clipped = DeltaXYWHBBoxCoder().decode(box, grow, (40, 50))  # (h, w)
    torch.testing.assert_close(clipped, torch.tensor([[0.0, 0.0, 50.0, 40.0]]))
    whole = torch.tensor([[-20.0, -20.0, 60.0, 60.0]])
    torch.testing.assert_close(DeltaXYWHBBoxCoder().decode(box, grow), whole)
    torch.testing.assert_close(DeltaXYWHBBoxCoder(clip_border=False).decode(box, grow, (40, 50)), whole)
