"""Non-maximum suppression within groups of boxes: pyramid levels or classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import batched_nms, box_iou
from torchvision.ops import nms as torch_nms

from ddetr.registry import TASK_UTILS


def grouped_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, cfg: dict[str, Any], max_num: int, min_size: float = -1
) -> tuple[Tensor, Tensor]:
    """Remove small boxes and boxes that overlap a higher-scoring box of the same group.

    Args:
        boxes: (N, 4), x1 y1 x2 y2.
        scores: (N,).
        groups: (N,) int64.
        cfg: `dict(type='nms', iou_threshold=...)`, or `dict(type='soft_nms', iou_threshold=..., sigma=0.5,
            min_score=0.001, method='linear' | 'gaussian')`.
        max_num: Maximum number of boxes to keep; no limit if not positive.
        min_size: Size in pixels that both sides must exceed; no limit if negative.

    Returns:
        Indices of the kept boxes (n,), best first, and their scores (n,), which soft NMS lowers.

    Raises:
        KeyError: Unknown `type`.
        ValueError: Unknown `method` of soft NMS.
        TypeError: Unknown key for this type.
    """
    options = {'type': 'nms', **cfg, 'max_num': max_num if max_num > 0 else len(boxes)}
    suppress = TASK_UTILS.get(options.pop('type'))
    if suppress is None:
        raise KeyError(f'nms={dict(cfg)}: this type is not registered, use "nms" or "soft_nms"')
    if min_size < 0:
        return suppress(boxes.float(), scores.float(), groups, **options)
    large = ((boxes[:, 2:] - boxes[:, :2]) > min_size).all(dim=1).nonzero().flatten()
    keep, kept_scores = suppress(boxes[large].float(), scores[large].float(), groups[large], **options)
    return large[keep], kept_scores


@TASK_UTILS.register_module()
def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, max_num: int, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """Remove boxes whose IoU with a higher-scoring box of their group exceeds `iou_threshold`; see `grouped_nms`."""
    suppress = _nms_in_one_graph if torch.compiler.is_exporting() else batched_nms
    keep = suppress(boxes, scores, groups, iou_threshold)[:max_num]
    return keep, scores[keep]


def _nms_in_one_graph(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """`batched_nms` by offsetting groups, without torchvision's branch on the number of boxes."""
    side = F.pad(boxes.flatten(), (0, 1)).amax(0) + 1  # 1 without boxes; torch.onnx needs an axis
    return torch_nms(boxes + (groups.to(boxes) * side)[:, None], scores, iou_threshold)


@TASK_UTILS.register_module()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    max_num: int,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = 'linear',
) -> tuple[Tensor, Tensor]:
    """Lower the scores of overlapping boxes instead of removing them (Bodla et al., "Soft-NMS").

    Scores never increase, so boxes are selected in order of their final score and selection can stop at `max_num`.

    Arguments are those of `grouped_nms`. Boxes whose score falls below `min_score` are removed.
    """
    if method not in ('linear', 'gaussian'):
        raise ValueError(f'soft_nms: method={method!r} must be "linear" or "gaussian"')
    left = scores.clone()
    picked, picked_scores = [boxes.new_zeros(0, dtype=torch.int64)], [scores[:0]]
    for _ in range(min(max_num, len(boxes))):
        score, best = left.max(dim=0)
        if score < min_score:
            break
        picked.append(best[None])
        picked_scores.append(score[None])
        iou = box_iou(boxes[best][None], boxes)[0] * (groups == groups[best])  # (N,)
        if method == 'linear':
            left = torch.where(iou > iou_threshold, left * (1 - iou), left)
        else:
            left = left * (-(iou**2) / sigma).exp()
        left[best] = -1
    return torch.cat(picked), torch.cat(picked_scores)
