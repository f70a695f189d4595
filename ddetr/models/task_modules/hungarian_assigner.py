"""One-to-one matching of predictions and ground truth (DETR, section 3.1)."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ddetr.registry import TASK_UTILS
from ddetr.structures import Matching, SetTargets


@TASK_UTILS.register_module()
class HungarianAssigner:
    """Finds the matching of least total cost.

    Args:
        match_costs: configs of the costs that are summed.

    Raises:
        ValueError: no costs.
    """

    def __init__(self, match_costs: dict | list[dict]) -> None:
        configs = [match_costs] if isinstance(match_costs, dict) else list(match_costs)
        if not configs:
            raise ValueError('HungarianAssigner needs at least one entry in match_costs')
        self.match_costs = [TASK_UTILS.build(cfg) for cfg in configs]

    @torch.no_grad()
    def assign(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> list[Matching]:
        """Match the queries of every decoder layer with one image's targets.

        Args:
            cls_logits: (N, Q, K), N decoder layers.
            boxes_cxcywh_norm: (N, Q, 4).
            targets: the image's ground truth, G boxes.

        Returns:
            N matchings of min(Q, G) pairs each, on the device of the logits.

        Raises:
            ValueError: a cost is not finite, which means that the predictions diverged.
        """
        layers, queries, _ = cls_logits.shape
        logits, boxes = cls_logits.flatten(0, 1).float(), boxes_cxcywh_norm.flatten(0, 1).float()
        cost = sum(term(logits, boxes, targets) for term in self.match_costs)  # (N * Q, G)
        cost = cost.view(layers, queries, -1).cpu()  # one transfer for all layers
        if not cost.isfinite().all():
            raise ValueError(
                f'{int((~cost.isfinite()).sum())} of {cost.numel()} matching costs are not finite: the '
                'predictions are NaN or infinite, so training has diverged (lower the learning rate or check '
                'the boxes of the data)'
            )
        return [_solve(layer, cls_logits.device) for layer in cost]


def _solve(cost: Tensor, device: torch.device) -> Matching:
    """(Q, G) on the CPU -> the cheapest matching."""
    rows, columns = linear_sum_assignment(cost.numpy())
    return Matching(*(torch.as_tensor(i, dtype=torch.int64, device=device) for i in (rows, columns)))
