"""Multi-scale deformable attention in plain PyTorch: what the kernels are tested against, and the fallback.

One `grid_sample` per level, as the paper's text defines it (Deformable DETR, section 4.1). It differs from
the `grid_sample` formulation that other projects use at the borders only: a point that lies on or outside the
open interval (-1, size) of pixel coordinates, or that is not finite, contributes nothing and gets no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample `value` at every location, bilinearly, and sum with the weights.

    Args:
        value: (B, S, M, D), the levels' tokens one level after the other, S = sum of h * w.
        spatial_shapes: (L, 2), each level's (h, w).
        sampling_locations: (B, Q, M, L, P, 2), (x, y) with 0 and 1 at the outer borders of the map.
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D) in the dtype of `value`.
    """
    batch, _, heads, head_dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    sizes = [(int(h), int(w)) for h, w in spatial_shapes.tolist()]
    wide = torch.promote_types(torch.promote_types(value.dtype, sampling_locations.dtype), torch.float32)
    maps = value.to(wide).permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, D, S)
    locations = sampling_locations.to(wide).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    weights = attention_weights.to(wide).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P)
    result = maps.new_zeros(batch * heads, head_dim, queries)
    start = 0
    for level, (height, width) in enumerate(sizes):
        level_map = maps[..., start : start + height * width].unflatten(-1, (height, width))
        start += height * width
        if level_map.numel() == 0 or queries == 0 or points == 0:
            continue
        at = locations[:, :, level]  # (B*M, Q, P, 2)
        pixels = at * at.new_tensor([width, height]) - 0.5  # -0.5: pixel centres lie on integers
        inside = ((pixels > -1) & (pixels < pixels.new_tensor([width, height]))).all(-1)
        # `where` and not a product: what lies outside must not leak a NaN, forward or backward.
        grid = torch.where(inside[..., None], at, 0.5) * 2 - 1
        sampled = F.grid_sample(level_map, grid, padding_mode='zeros', align_corners=False)  # (B*M, D, Q, P)
        kept = torch.where(inside, weights[:, :, level], 0.0)[:, None]  # (B*M, 1, Q, P)
        result = result + torch.where(inside[:, None], sampled * kept, 0.0).sum(-1)
    return result.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def sampling_locations_of(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Tensor
) -> Tensor:
    """Where the attention looks, from its reference points and raw offsets.

    Args:
        reference_points: (B, Q, L, 2) points (x, y), or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2), in pixels of the level for points; for boxes in half box sizes
            times P, as in the original's iterative refinement.
        spatial_shapes: (L, 2), each level's (h, w).

    Returns:
        (B, Q, M, L, P, 2), (x, y) in [0, 1].
    """
    centers = reference_points[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
    if reference_points.shape[-1] == 2:
        sizes_xy = spatial_shapes.flip(-1).to(sampling_offsets)  # (L, 2), w and h
        return centers + sampling_offsets / sizes_xy[:, None]
    sizes = reference_points[:, :, None, :, None, 2:]
    return centers + sampling_offsets / sampling_offsets.shape[4] * sizes * 0.5


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The fused form step by step: softmax over all levels and points, locations, sampling.

    Shapes as in `ms_deform_attn_reference` and `sampling_locations_of`; attention_logits: (B, Q, M, L * P).
    """
    levels, points = sampling_offsets.shape[3:5]
    weights = attention_logits.softmax(-1).unflatten(-1, (levels, points))  # (B, Q, M, L, P)
    locations = sampling_locations_of(reference_points, sampling_offsets, spatial_shapes)
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights)
