"""Attention module built on the operator; base class of ddetr's layer and of the drop-in replacements."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .functional import ms_deform_attn_fused


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention with its projections and the parameter names used by all projects.

    Args:
        channels: Channels of the query.
        levels: Number of feature levels.
        heads: Number of attention heads.
        points: Number of sampling points per head and level; a list sets it per level.
        value_channels: Channels of the values. Both this and `channels` must be divisible by `heads`.
    """

    def __init__(
        self, channels: int, levels: int, heads: int, points: int | Sequence[int], value_channels: int
    ) -> None:
        super().__init__()
        self.points_of_level = [points] * levels if isinstance(points, int) else list(points)
        if len(self.points_of_level) != levels or min(self.points_of_level) < 1:
            raise ValueError(f'points={points} must give at least one point for each of {levels} levels')
        if channels % heads or value_channels % heads:
            raise ValueError(
                f'{channels} channels (value: {value_channels}) are not divisible by {heads} heads'
            )
        self.levels, self.heads = levels, heads
        self.sampling_offsets = nn.Linear(channels, heads * sum(self.points_of_level) * 2)
        self.attention_weights = nn.Linear(channels, heads * sum(self.points_of_level))
        self.value_proj = nn.Linear(channels, value_channels)
        self.output_proj = nn.Linear(value_channels, channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as in the paper, appendix A.4: point p of head m in direction 2 pi m / M, at distance p + 1."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # (M, 2)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.cat([torch.arange(1, points + 1.0) for points in self.points_of_level])
        nn.init.zeros_(self.sampling_offsets.weight)
        self.sampling_offsets.bias.copy_((directions[:, None] * distances[:, None]).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def attend(
        self,
        query: Tensor,
        tokens: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        pad_mask: Tensor | None,
    ) -> Tensor:
        """Attend from query (B, Q, C) to tokens (B, S, C), with pad_mask (B, S), True = padding. Returns (B, Q, C)."""
        if tokens.shape[1] == 0 or reference_points.shape[-1] not in (2, 4):
            raise ValueError(
                f'got {tokens.shape[1]} tokens and reference points of size {reference_points.shape[-1]}: at least one '
                'token and size 2 or 4 are required'
            )
        batch, queries, _ = query.shape
        value = self.value_proj(tokens)  # (B, S, C)
        if pad_mask is not None:
            value = value.masked_fill(pad_mask[..., None], 0.0)
        offsets = self.sampling_offsets(query).view(batch, queries, self.heads, -1, 2)
        logits = self.attention_weights(query).view(batch, queries, self.heads, -1)
        sampled = ms_deform_attn_fused(
            value.unflatten(-1, (self.heads, -1)),
            spatial_shapes,
            level_start_index,
            reference_points,
            offsets,
            logits,
            self.points_of_level,
        )
        output: Tensor = self.output_proj(sampled)
        return output
