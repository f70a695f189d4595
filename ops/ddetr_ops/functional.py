"""Functional interface of the operators. `_registrations` adds autograd, fake kernels, autocast and vmap.

Like PyTorch functions, they support `torch.overrides.TorchFunctionMode`, regardless of whether the compiled or the
plain PyTorch implementation runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import wrap_torch_function

from . import _library
from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

if _library.CPU_PROBLEM is None:
    from . import _registrations  # noqa: F401


def _as_indices(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.dtype is torch.int64 and tensor.device == device:
        return tensor
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f'spatial_shapes and level_start_index must be int64 or int32 tensors, got {tensor.dtype}'
        )
    return tensor.to(device, torch.int64)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _settle_dtypes(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the dtype of `value` or to the accumulation dtype, the combinations that the kernels support."""
    dtype = locations.dtype
    if dtype == weights.dtype and dtype in (value.dtype, _wide(value.dtype)):
        return locations, weights
    if torch.float64 in (value.dtype, dtype, weights.dtype):
        return (
            locations,
            weights,
        )  # never reduce double precision silently: the kernel raises an error with the dtypes
    return locations.float(), weights.float()


def _value_of(*args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (args[0] if args else kwargs['value'],)


@wrap_torch_function(_value_of)
def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Multi-scale deformable attention without its projections (Deformable DETR, section 4.1, equation 3).

    Each head of each query samples P points from each of L feature maps by bilinear interpolation and computes their
    sum weighted by the attention weights.

    Shapes: B batch size, Q queries, S tokens, M heads, D channels per head, L levels, P points per level, K points of
    all levels.

    Args:
        value: (B, S, M, D), float32, float64, bfloat16 or float16. Tokens are the pixels of each feature map in
            row-major order, level by level; S is the sum of h * w.
        spatial_shapes: (L, 2), (h, w) of each level, int64 or int32, on any device.
        level_start_index: (L,), first token of each level: 0, h0 * w0, h0 * w0 + h1 * w1, ...
        sampling_locations: (B, Q, M, L, P, 2), (x, y) with 0 and 1 at the outer borders of the feature map, so that
            the centre of pixel i is (i + 0.5) / size. Dtype of `value` or float32; sums are accumulated in float32
            (float64 for float64) for every dtype of `value`. Points half a pixel or more beyond the border, and
            non-finite points, contribute nothing.
        attention_weights: (B, Q, M, L, P), after the softmax.
        num_points: Number of points of each level, if it differs between levels (D-FINE, RT-DETRv2).
            `sampling_locations` is then (B, Q, M, K, 2) and `attention_weights` (B, Q, M, K), level by level.

    Returns:
        (B, Q, M * D) in the dtype of `value`.

    Raises:
        RuntimeError: Shapes are inconsistent, or dtypes or devices do not match.
        TypeError: spatial_shapes or level_start_index are not integers.
    """
    shapes = _as_indices(spatial_shapes, value.device)
    starts = _as_indices(level_start_index, value.device)
    if not _library.has_kernels(value.device.type):
        return ms_deform_attn_reference(value, shapes, sampling_locations, attention_weights, num_points)
    locations, weights = _settle_dtypes(value, sampling_locations, attention_weights)
    output: Tensor = torch.ops.ddetr_ops.ms_deform_attn_forward(
        value, shapes, starts, locations, weights, num_points or ()
    )
    return output


@wrap_torch_function(_value_of)
def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Fused multi-scale deformable attention, computed directly from the outputs of the linear layers.

    Equivalent to `ms_deform_attn` with a softmax over all K logits of a head and the locations
    reference + offset / (w, h) for points, or (cx, cy) + offset / P * (w, h) / 2 for boxes.

    Args:
        value, spatial_shapes, level_start_index, num_points: As in `ms_deform_attn`.
        reference_points: (B, Q, L, 2) points (x, y) or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2), or (B, Q, M, K, 2) with `num_points`. Units: pixels of the level for
            reference points; half the box size divided by the level's number of points for boxes.
        attention_logits: (B, Q, M, K), before the softmax; K = L * P without `num_points`.

    Returns:
        (B, Q, M * D) in the dtype of `value`.

    Raises:
        RuntimeError, TypeError: As in `ms_deform_attn`.
    """
    shapes = _as_indices(spatial_shapes, value.device)
    starts = _as_indices(level_start_index, value.device)
    if not _library.has_kernels(value.device.type):
        return ms_deform_attn_fused_reference(
            value, shapes, reference_points, sampling_offsets, attention_logits, num_points
        )
    offsets, logits = _settle_dtypes(value, sampling_offsets, attention_logits)
    references = reference_points.to(_wide(reference_points.dtype))
    output: Tensor = torch.ops.ddetr_ops.ms_deform_attn_fused_forward(
        value, shapes, starts, references, offsets, logits, num_points or ()
    )
    return output


@torch.no_grad()
def discrete_sampling_locations(
    sampling_locations: Tensor, spatial_shapes: Tensor, num_points: Sequence[int] | None = None
) -> Tensor:
    """Round locations to pixel centres, for the discrete sampling of RT-DETRv2 (section 3.2 of its paper).

    At these locations, `ms_deform_attn` reads a single pixel per point instead of interpolating between four:
    pixel floor(location * size + 0.5), clamped to the feature map, as in the published models.

    Args:
        sampling_locations, spatial_shapes, num_points: As in `ms_deform_attn`.

    Returns:
        (x, y) with the shape and dtype of `sampling_locations`, without gradient, as in the original code.
    """
    sizes = spatial_shapes.flip(-1).to(sampling_locations)  # (L, 2), w and h
    if num_points is None:
        sizes = sizes[:, None]
    else:
        sizes = sizes.repeat_interleave(torch.tensor(num_points, device=sizes.device), 0)
    pixels = (sampling_locations * sizes + 0.5).trunc()
    pixels = torch.minimum(pixels.clamp(min=0), sizes - 1)
    return (pixels + 0.5) / sizes
