import math

import pytest
import torch

from ddetr.models.task_modules.nms import grouped_nms


def candidates(count: int = 120) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    corner = torch.rand(count, 2) * 40
    boxes = torch.cat([corner, corner + 5 + torch.rand(count, 2) * 25], dim=1)
    return boxes, torch.rand(count), torch.randint(0, 3, (count,))


def iou(a: list[float], b: list[float]) -> float:
    w = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    h = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (areas - w * h)


def by_loops(boxes, scores, groups, decay, min_score) -> list[tuple[int, float]]:
    """The algorithm of the Soft-NMS paper, figure 2; hard NMS is a decay to 0."""
    left = {i: score for i, score in enumerate(scores.tolist()) if score >= min_score}
    picked = []
    while left:
        best = max(left, key=lambda i: left[i])
        picked.append((best, left.pop(best)))
        for i in list(left):
            if groups[i] == groups[best]:
                left[i] *= decay(iou(boxes[best].tolist(), boxes[i].tolist()))
            if left[i] < min_score:
                del left[i]
    return picked


@pytest.mark.parametrize(
    ('cfg', 'decay', 'min_score'),
    [
        ({'iou_threshold': 0.4}, lambda o: float(o <= 0.4), 1e-9),
        ({'type': 'soft_nms', 'iou_threshold': 0.3}, lambda o: 1 - o if o > 0.3 else 1.0, 1e-3),
        (
            {'type': 'soft_nms', 'method': 'gaussian', 'sigma': 0.3, 'min_score': 0.1},
            lambda o: math.exp(-(o**2) / 0.3),
            0.1,
        ),
    ],
    ids=['hard', 'linear', 'gaussian'],
)
def test_equals_the_algorithm_box_by_box(cfg, decay, min_score):
    boxes, scores, groups = candidates()
    keep, kept_scores = grouped_nms(boxes, scores, groups, cfg, max_num=-1)
    expected = by_loops(boxes, scores, groups, decay, min_score)
    assert len(expected) > 10
    assert keep.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(kept_scores, torch.tensor([s for _, s in expected]), atol=1e-5, rtol=1e-4)
    few, few_scores = grouped_nms(boxes, scores, groups, cfg, max_num=7)
    assert torch.equal(few, keep[:7])
    assert torch.equal(few_scores, kept_scores[:7])


@pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
def test_empty_input_gives_empty_output(kind):
    empty = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    keep, scores = grouped_nms(*empty, {'type': kind, 'iou_threshold': 0.5}, max_num=100)
    assert keep.dtype == torch.int64
    assert len(keep) == len(scores) == 0


def test_unknown_types_methods_and_keys_raise():
    with pytest.raises(KeyError, match=r'fast_nms.*not registered'):
        grouped_nms(*candidates(3), {'type': 'fast_nms'}, max_num=1)
    with pytest.raises(ValueError, match="method='cubic'"):
        grouped_nms(*candidates(3), {'type': 'soft_nms', 'method': 'cubic'}, max_num=1)
    with pytest.raises(TypeError, match='iou_thr'):
        grouped_nms(*candidates(3), {'type': 'nms', 'iou_thr': 0.5}, max_num=1)
