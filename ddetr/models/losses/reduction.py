"""Weighting and averaging that all losses share."""

from torch import Tensor

REDUCTIONS = ('none', 'mean', 'sum')


def check_reduction(reduction: str) -> str:
    """`reduction` itself; ValueError unless it is one of `none`, `mean`, `sum`."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction={reduction!r} is none of {REDUCTIONS}')
    return reduction


def weighted_reduce(
    loss: Tensor, weight: Tensor | None, reduction: str, avg_factor: Tensor | float | None
) -> Tensor:
    """Weight `loss` elementwise, then reduce it.

    Args:
        loss: any shape.
        weight: of the same shape, or without the trailing dimensions of `loss`; None for ones.
        reduction: `none`, `mean` or `sum`.
        avg_factor: what `mean` divides by instead of the number of elements, such as the number of objects.

    Raises:
        ValueError: `avg_factor` together with `reduction='sum'`, where it has no meaning.
    """
    if weight is not None:
        loss = loss * weight.reshape(weight.shape + (1,) * (loss.dim() - weight.dim()))
    if reduction == 'none':
        return loss
    if avg_factor is None:
        return loss.mean() if reduction == 'mean' else loss.sum()
    if reduction == 'sum':
        raise ValueError('avg_factor is only used with reduction="mean", not with "sum"')
    return loss.sum() / avg_factor
