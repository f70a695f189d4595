"""Assign ground-truth boxes to candidate boxes by IoU (Ren et al., 2015, section 3.1.2)."""

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou

from ddetr.registry import TASK_UTILS

BACKGROUND = -1
IGNORED = -2


@TASK_UTILS.register_module()
class MaxIoUAssigner:
    """Assigns ground truth to candidates by IoU thresholds.

    Args:
        pos_iou_thr: Minimum IoU at which a candidate is assigned to the ground truth that it overlaps most.
        neg_iou_thr: Candidates with a lower IoU are background; for a pair (low, high), those with low <= IoU < high.
        min_pos_iou: Minimum IoU at which a ground truth is also assigned to its best candidates, even if their IoU
            is below `pos_iou_thr`.
        gt_max_assign_all: Whether this applies to all candidates that share the best IoU instead of only the first.
        ignore_iof_thr: Candidates whose covered fraction by an ignored (crowd) region exceeds this value are neither
            object nor background, and are never assigned; disabled if not positive.
        ignore_wrt_candidates: Whether this fraction is relative to the candidate; False: to the ignored region.
        match_low_quality: Whether to use `min_pos_iou`.
        keep_best_gt: Whether candidates assigned by `min_pos_iou` keep the ground truth that they overlap most, as
            in torchvision, instead of the last one assigned, as in MMDetection.
    """

    def __init__(
        self,
        pos_iou_thr: float,
        neg_iou_thr: float | tuple[float, float],
        min_pos_iou: float = 0.0,
        gt_max_assign_all: bool = True,
        ignore_iof_thr: float = -1,
        ignore_wrt_candidates: bool = True,
        match_low_quality: bool = True,
        keep_best_gt: bool = False,
    ) -> None:
        low, high = (0.0, neg_iou_thr) if isinstance(neg_iou_thr, (int, float)) else neg_iou_thr
        self.pos_iou_thr, self.neg_low, self.neg_high, self.min_pos_iou = pos_iou_thr, low, high, min_pos_iou
        self.gt_max_assign_all, self.match_low_quality = gt_max_assign_all, match_low_quality
        self.ignore_iof_thr, self.ignore_wrt_candidates = ignore_iof_thr, ignore_wrt_candidates
        self.keep_best_gt = keep_best_gt

    def assign(self, boxes: Tensor, gt_boxes: Tensor, ignored_boxes: Tensor | None = None) -> Tensor:
        """Assign the candidates of one image. All boxes are x1 y1 x2 y2.

        Args:
            boxes: (N, 4), candidates.
            gt_boxes: (G, 4), ground truth.
            ignored_boxes: (I, 4), ignored regions.

        Returns:
            (N,) int64: index of the ground truth, `BACKGROUND` or `IGNORED`.
        """
        assigned = torch.full((len(boxes),), IGNORED, device=boxes.device)
        in_crowd = self._in_ignored_region(boxes, ignored_boxes)  # (N,) bool
        if len(gt_boxes) == 0 or len(boxes) == 0:
            return assigned.masked_fill(~in_crowd, BACKGROUND)
        overlaps = box_iou(gt_boxes, boxes).masked_fill(in_crowd, -1)  # (G, N)
        best_iou, best_gt = overlaps.max(dim=0)  # (N,), (N,)
        assigned[(best_iou >= self.neg_low) & (best_iou < self.neg_high)] = BACKGROUND
        sure = best_iou >= self.pos_iou_thr
        assigned[sure] = best_gt[sure]
        if self.match_low_quality:
            taken = self._taken_by_gts(overlaps)  # (G, N) bool
            last_taker = len(gt_boxes) - 1 - taken.flip(0).to(torch.uint8).argmax(dim=0)  # (N,)
            by_force = taken.any(dim=0)
            assigned[by_force] = (best_gt if self.keep_best_gt else last_taker)[by_force]
        return assigned

    def _taken_by_gts(self, overlaps: Tensor) -> Tensor:
        """Mask (G, N) bool of the best candidates of each ground truth, from the IoUs (G, N)."""
        best, best_index = overlaps.max(dim=1, keepdim=True)  # (G, 1)
        if self.gt_max_assign_all:
            taken = overlaps == best
        else:
            taken = torch.zeros_like(overlaps, dtype=torch.bool).scatter(1, best_index, True)
        return taken & (best >= self.min_pos_iou)

    def _in_ignored_region(self, boxes: Tensor, regions: Tensor | None) -> Tensor:
        """Mask (N,) bool of the boxes (N, 4) that lie in any of the regions (I, 4)."""
        if self.ignore_iof_thr <= 0 or regions is None or len(regions) == 0:
            return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        top_left = torch.max(boxes[:, None, :2], regions[None, :, :2])
        bottom_right = torch.min(boxes[:, None, 2:], regions[None, :, 2:])
        overlap = (bottom_right - top_left).clamp(min=0).prod(-1)  # (N, I)
        whole = box_area(boxes)[:, None] if self.ignore_wrt_candidates else box_area(regions)[None]
        covered = overlap / whole.clamp(min=torch.finfo(overlap.dtype).eps)
        return covered.max(dim=1).values > self.ignore_iof_thr
