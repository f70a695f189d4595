"""The operators as functions. `_registrations` gives them autograd, fake kernels, autocast and vmap."""

import torch
from torch import Tensor

from . import _library
from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

if _library.CPU_PROBLEM is None:
    from . import _registrations  # noqa: F401


def _as_indices(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f'spatial_shapes and level_start_index must be int64 or int32 tensors, got {tensor.dtype}'
        )
    return tensor.to(device, torch.int64)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _settle_dtypes(value: Tensor, where: Tensor, how_much: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype of `value`, or both in the type that sums run in: the kernels know these pairs."""
    if where.dtype == how_much.dtype and where.dtype in (value.dtype, _wide(value.dtype)):
        return where, how_much
    if torch.float64 in (value.dtype, where.dtype, how_much.dtype):
        return where, how_much  # no silent change of double precision: the kernel names the dtypes
    return where.float(), how_much.float()


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention between its projections (Deformable DETR, section 4.1, equation 3).

    Every head of every query takes P points from each of L maps, bilinearly, and sums them with weights.
    B batch, Q queries, S tokens, M heads, D channels a head, L levels, P points.

    Args:
        value: (B, S, M, D), float32, float64, bfloat16 or float16; the maps' pixels row by row, one level after
            the other, S = sum of h * w.
        spatial_shapes: (L, 2), each level's (h, w), int64 or int32, on any device.
        level_start_index: (L,), the first token of each level: 0, h0 * w0, h0 * w0 + h1 * w1, ...
        sampling_locations: (B, Q, M, L, P, 2), (x, y) with 0 and 1 at the outer borders of the map, so that the
            centre of pixel i lies at (i + 0.5) / size. In the dtype of `value` or in float32; sums run in float32
            (float64 for float64) whatever the dtype of `value`. A point on or beyond -0.5 pixels from the map's
            border or that is not finite contributes nothing.
        attention_weights: (B, Q, M, L, P), as they are: no softmax here.

    Returns:
        (B, Q, M * D) in the dtype of `value`.

    Raises:
        RuntimeError: shapes that do not add up, dtypes or devices that do not go together.
        TypeError: spatial_shapes or level_start_index are not integers.
    """
    shapes = _as_indices(spatial_shapes, value.device)
    starts = _as_indices(level_start_index, value.device)
    if not _library.has_kernels(value.device.type):
        return ms_deform_attn_reference(value, shapes, sampling_locations, attention_weights)
    where, how_much = _settle_dtypes(value, sampling_locations, attention_weights)
    return torch.ops.ddetr_ops.ms_deform_attn_forward(
        value.contiguous(),
        shapes.contiguous(),
        starts.contiguous(),
        where.contiguous(),
        how_much.contiguous(),
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The same in one pass from what the linear layers give: softmax, locations and sampling.

    Equal to `ms_deform_attn` on the softmax over all L * P logits of a head and on the locations
    reference + offset / (w, h) for points, (cx, cy) + offset / P * (w, h) / 2 for boxes.

    Args:
        value, spatial_shapes, level_start_index: as in `ms_deform_attn`.
        reference_points: (B, Q, L, 2) points (x, y) or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2): pixels of the level for points; for boxes, half box sizes times P.
        attention_logits: (B, Q, M, L * P).

    Returns:
        (B, Q, M * D) in the dtype of `value`.

    Raises:
        RuntimeError, TypeError: as in `ms_deform_attn`.
    """
    shapes = _as_indices(spatial_shapes, value.device)
    starts = _as_indices(level_start_index, value.device)
    if not _library.has_kernels(value.device.type):
        return ms_deform_attn_fused_reference(
            value, shapes, reference_points, sampling_offsets, attention_logits
        )
    where, how_much = _settle_dtypes(value, sampling_offsets, attention_logits)
    return torch.ops.ddetr_ops.ms_deform_attn_fused_forward(
        value.contiguous(),
        shapes.contiguous(),
        starts.contiguous(),
        reference_points.to(_wide(reference_points.dtype)).contiguous(),
        where.contiguous(),
        how_much.contiguous(),
    )
