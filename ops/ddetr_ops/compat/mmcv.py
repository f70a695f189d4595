"""Drop-in replacement for `mmcv.ops.multi_scale_deform_attn` that does not need mmcv's compiled extension."""

from typing import Any

from torch import Tensor, nn

from ..attention import DeformableAttention
from ..functional import ms_deform_attn
from .original import MSDeformAttnFunction as MultiScaleDeformableAttnFunction

__all__ = [
    'MultiScaleDeformableAttention',
    'MultiScaleDeformableAttnFunction',
    'multi_scale_deformable_attn_pytorch',
]


def multi_scale_deformable_attn_pytorch(
    value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Replacement for mmcv's function of the same name that uses the compiled operator, also on the CPU."""
    sizes = value_spatial_shapes.prod(-1)
    starts = sizes.cumsum(0) - sizes
    return ms_deform_attn(value, value_spatial_shapes, starts, sampling_locations, attention_weights)


class MultiScaleDeformableAttention(DeformableAttention):
    """mmcv's attention layer, with the same arguments and state dict.

    `im2col_step`, `norm_cfg` and `init_cfg` are accepted and ignored. mmcv ignores the last two as well.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = False,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
        value_proj_ratio: float = 1.0,
    ) -> None:
        super().__init__(embed_dims, num_levels, num_heads, num_points, int(embed_dims * value_proj_ratio))
        self.embed_dims, self.num_heads, self.num_levels, self.num_points = (
            embed_dims,
            num_heads,
            num_levels,
            num_points,
        )
        self.im2col_step, self.batch_first = im2col_step, batch_first
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Initialise the parameters as in the constructor; called by mmengine."""
        self.reset_parameters()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attend from query (Q, B, C) to value (S, B, C), or batch first; key_padding_mask (B, S), True = padding.

        Returns the attention output plus `identity` (default: `query`), in the layout of `query`. `key` and `kwargs`
        are ignored; mmcv's layers pass the same arguments to every kind of attention.
        """
        if reference_points is None or spatial_shapes is None or level_start_index is None:
            raise ValueError('reference_points, spatial_shapes and level_start_index are required')
        tokens = query if value is None else value
        identity = query if identity is None else identity
        if query_pos is not None:
            query = query + query_pos
        if not self.batch_first:
            query, tokens = query.transpose(0, 1), tokens.transpose(0, 1)
        output = self.attend(
            query, tokens, reference_points, spatial_shapes, level_start_index, key_padding_mask
        )
        if not self.batch_first:
            output = output.transpose(0, 1)
        summed: Tensor = self.dropout(output) + identity
        return summed
