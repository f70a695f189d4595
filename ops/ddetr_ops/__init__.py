"""Multi-scale deformable attention for PyTorch: fast on the CPU and the GPU, one wheel for many versions."""

from torch import Tensor

from .reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

__all__ = ['ms_deform_attn', 'ms_deform_attn_fused']


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3) after the projections.

    Args:
        value: (B, S, M, D).
        spatial_shapes: (L, 2), (h, w).
        level_start_index: (L,), first token of each level.
        sampling_locations: (B, Q, M, L, P, 2), (x, y) in [0, 1].
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D).
    """
    return ms_deform_attn_reference(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """The same from raw offsets (B, Q, M, L, P, 2), logits (B, Q, M, L * P) and references (B, Q, L, 2 or 4)."""
    return ms_deform_attn_fused_reference(
        value, spatial_shapes, reference_points, sampling_offsets, attention_logits
    )
