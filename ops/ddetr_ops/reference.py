"""Multi-scale deformable attention in plain PyTorch: the reference for tests, and the fallback.

Uses one `grid_sample` per level, following the definition in the paper (Deformable DETR, section 4.1). It differs from
other `grid_sample` implementations only in two respects. Points outside the open interval (-1, size) of pixel
coordinates, and non-finite points, contribute nothing and get no gradient. A NaN or infinity in a pixel whose bilinear
coefficient is zero does not affect the result.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Sample `value` bilinearly at every location and compute the weighted sum.

    Args:
        value: (B, S, M, D), tokens of all levels, level by level; S is the sum of h * w.
        spatial_shapes: (L, 2), (h, w) of each level.
        sampling_locations: (B, Q, M, L, P, 2), (x, y) with 0 and 1 at the outer borders of the feature map; with
            `num_points` (B, Q, M, K, 2).
        attention_weights: (B, Q, M, L, P), or (B, Q, M, K).
        num_points: Number of points of each level, if it differs between levels; K is the sum.

    Returns:
        (B, Q, M * D) in the dtype of `value`.
    """
    batch, _, heads, head_dim = value.shape
    queries = sampling_locations.shape[1]
    sizes = [(int(h), int(w)) for h, w in spatial_shapes.tolist()]
    wide = torch.promote_types(torch.promote_types(value.dtype, sampling_locations.dtype), torch.float32)
    maps = value.to(wide).permute(0, 2, 3, 1).flatten(0, 1)  # (B*M, D, S)
    locations = sampling_locations.to(wide).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    weights = attention_weights.to(wide).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P)
    result = maps.new_zeros(batch * heads, head_dim, queries)
    sample = _grid_sample if bool(maps.isfinite().all()) else _sample_corners
    start = 0
    levels = zip(sizes, _by_level(locations, 2, num_points), _by_level(weights, 2, num_points), strict=True)
    for (height, width), at, weight in levels:  # at: (B*M, Q, P, 2)
        level_map = maps[..., start : start + height * width].unflatten(-1, (height, width))
        start += height * width
        if level_map.numel() == 0 or weight.numel() == 0:
            continue
        pixels = at * at.new_tensor([width, height]) - 0.5  # -0.5: pixel centres lie on integers
        inside = ((pixels > -1) & (pixels < pixels.new_tensor([width, height]))).all(-1)
        # `where` instead of a product, so that NaN from outside does not leak in the forward or backward pass
        sampled = sample(level_map, torch.where(inside[..., None], pixels, 0.0))  # (B*M, D, Q, P)
        kept = torch.where(inside, weight, 0.0)[:, None]  # (B*M, 1, Q, P)
        result = result + torch.where(inside[:, None], sampled * kept, 0.0).sum(-1)
    heads_apart: Tensor = result.unflatten(0, (batch, heads))  # (B, M, D, Q)
    return heads_apart.permute(0, 3, 1, 2).flatten(2).to(value.dtype)


def _grid_sample(level_map: Tensor, pixels: Tensor) -> Tensor:
    """Sample (B*M, D, h, w) bilinearly at (B*M, Q, P, 2), with zeros beyond the border. Returns (B*M, D, Q, P)."""
    height, width = level_map.shape[-2:]
    grid = (pixels + 0.5) / pixels.new_tensor([width, height]) * 2 - 1
    return F.grid_sample(level_map, grid, padding_mode='zeros', align_corners=False)


def _sample_corners(level_map: Tensor, pixels: Tensor) -> Tensor:
    """`_grid_sample`, except that non-finite pixels with a coefficient of zero are treated as zeros.

    `grid_sample` would multiply them by the coefficient, and zero times NaN is NaN. Needs several times the memory.
    """
    (height, width), (x, y) = level_map.shape[-2:], pixels.unbind(-1)
    left, top = x.detach().floor(), y.detach().floor()
    total = level_map.new_zeros(())
    for column, by_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, by_y in ((top, top + 1 - y), (top + 1, y - top)):
            in_map = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            token = torch.where(in_map, row * width + column, 0).long().flatten(1)  # (B*M, Q * P)
            corner = level_map.flatten(2).gather(2, token[:, None].expand(-1, level_map.shape[1], -1))
            corner = corner.unflatten(-1, x.shape[1:])  # (B*M, D, Q, P)
            coefficient = by_x * by_y
            counts = in_map & ((coefficient != 0) | corner.isfinite().all(1))
            total = total + torch.where(counts[:, None], corner, 0.0) * coefficient[:, None]
    return total


def _by_level(points: Tensor, dim: int, num_points: Sequence[int] | None) -> tuple[Tensor, ...]:
    """Split (..., L, P, ...), or (..., K, ...) with `num_points`, along `dim` by level."""
    return points.unbind(dim) if num_points is None else points.split(list(num_points), dim)


def sampling_locations_of(
    reference_points: Tensor,
    sampling_offsets: Tensor,
    spatial_shapes: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Sampling locations from reference points and raw offsets.

    Args:
        reference_points: (B, Q, L, 2) points (x, y), or (B, Q, L, 4) boxes (cx, cy, w, h), in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2), or (B, Q, M, K, 2) with `num_points`. Units: pixels of the level for
            points; half the box size divided by P for boxes, as in the original's iterative refinement.
        spatial_shapes: (L, 2), (h, w) of each level.
        num_points: Number of points of each level, if it differs between levels; K is the sum.

    Returns:
        (x, y) in [0, 1], with the shape of `sampling_offsets`.
    """
    if num_points is None:
        levels, points = sampling_offsets.shape[3:5]
        num_points = [points] * levels
    counts = torch.tensor(num_points, device=sampling_offsets.device)
    offsets = sampling_offsets.reshape(*sampling_offsets.shape[:3], -1, 2)  # (B, Q, M, K, 2)
    references = reference_points.repeat_interleave(counts, 2)[:, :, None]  # (B, Q, 1, K, 2 or 4)
    if reference_points.shape[-1] == 2:
        moved = offsets / spatial_shapes.flip(-1).repeat_interleave(counts, 0).to(offsets)  # by w and h
    else:
        moved = offsets / counts.repeat_interleave(counts)[:, None].to(offsets) * references[..., 2:] * 0.5
    return (references[..., :2] + moved).reshape(sampling_offsets.shape)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    num_points: Sequence[int] | None = None,
) -> Tensor:
    """Reference of the fused op: softmax over all levels and points, sampling locations, sampling.

    Shapes as in `ms_deform_attn_reference` and `sampling_locations_of`; attention_logits: (B, Q, M, K).
    """
    weights = attention_logits.softmax(-1).reshape(sampling_offsets.shape[:-1])
    locations = sampling_locations_of(reference_points, sampling_offsets, spatial_shapes, num_points)
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights, num_points)
