"""Run the deformable attention of Hugging Face models on the operator."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..functional import discrete_sampling_locations, ms_deform_attn


def accelerate(model: nn.Module) -> int:
    """Run the deformable attention of a transformers model on the operator, for inference and training.

    Outputs are equal up to rounding; parameters and state dict do not change. Supported models: deformable_detr,
    grounding_dino, mm_grounding_dino, rt_detr, rt_detr_v2, d_fine, mask2former, oneformer and models derived from
    them. If transformers uses a module-level sampling function (mask2former, oneformer, rt_detr_v2), it is replaced
    for all models of that module in this process.

    Returns:
        Number of attention layers that run on the operator.

    Raises:
        ValueError: The model has no supported attention layer.
    """
    count = 0
    for module in model.modules():
        name, source = type(module).__name__, sys.modules[type(module).__module__]
        if name == 'MultiScaleDeformableAttention':
            module.forward = _forward
        elif hasattr(module, 'ms_deformable_attn_core'):
            module.ms_deformable_attn_core = multi_scale_deformable_attention_v2  # type: ignore[assignment]
        elif name.endswith('MultiscaleDeformableAttention') and hasattr(
            source, 'multi_scale_deformable_attention_v2'
        ):
            source.multi_scale_deformable_attention_v2 = multi_scale_deformable_attention_v2  # type: ignore[attr-defined]
        elif name.endswith('MultiscaleDeformableAttention') and hasattr(
            source, 'multi_scale_deformable_attention'
        ):
            source.multi_scale_deformable_attention = multi_scale_deformable_attention  # type: ignore[attr-defined]
        else:
            continue
        count += 1
    if count == 0:
        raise ValueError(f'{type(model).__name__} has no deformable attention supported by ddetr_ops')
    return count


def _levels(shapes: Tensor | Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    if not isinstance(shapes, Tensor):
        shapes = torch.tensor([(int(h), int(w)) for h, w in shapes], dtype=torch.int64, device=device)
    sizes = shapes.prod(-1)
    return shapes, sizes.cumsum(0) - sizes


def _forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: list[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Replacement for `MultiScaleDeformableAttention.forward`."""
    return ms_deform_attn(
        value, value_spatial_shapes, level_start_index, sampling_locations, attention_weights
    )


def multi_scale_deformable_attention(
    value: Tensor,
    value_spatial_shapes: Tensor | list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Replacement for the function of the same name in mask2former and oneformer."""
    shapes, starts = _levels(value_spatial_shapes, value.device)
    return ms_deform_attn(value, shapes, starts, sampling_locations, attention_weights)


def multi_scale_deformable_attention_v2(
    value: Tensor,
    value_spatial_shapes: Tensor | list[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points_list: list[int],
    method: str = 'default',
) -> Tensor:
    """Replacement for the function of the same name in rt_detr_v2 and d_fine; the number of points may vary by level.

    Shapes: value (B, S, M, D), sampling_locations (B, Q, M, K, 2), attention_weights (B, Q, M, K), where K is the sum
    of `num_points_list`. `method` is 'default' (bilinear) or 'discrete' (`discrete_sampling_locations`).

    Raises:
        ValueError: `method` has another value.
    """
    if method not in ('default', 'discrete'):
        raise ValueError(f"the sampling method must be 'default' or 'discrete', got '{method}'")
    shapes, starts = _levels(value_spatial_shapes, value.device)
    if method == 'discrete':
        sampling_locations = discrete_sampling_locations(sampling_locations, shapes, num_points_list)
    return ms_deform_attn(value, shapes, starts, sampling_locations, attention_weights, num_points_list)
