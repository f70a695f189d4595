"""Drop-in replacement for the extension module, function and attention layer of the original Deformable DETR.

Code with `import MultiScaleDeformableAttention as MSDA`, as in the original and projects that copied its `ops` folder,
runs unchanged after `ddetr_ops.compat.original.install()`, or without this call with
`python -m ddetr_ops.compat SCRIPT`. No module of that name is installed, because it would conflict with a compiled one.
"""

import sys

import torch
from torch import Tensor

from ..attention import DeformableAttention
from ..functional import ms_deform_attn

__all__ = [
    'MSDeformAttn',
    'MSDeformAttnFunction',
    'install',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
]


def install() -> None:
    """Make `import MultiScaleDeformableAttention` return this module."""
    sys.modules['MultiScaleDeformableAttention'] = sys.modules[__name__]


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Forward pass of the extension, without autograd; `im2col_step` is ignored."""
    with torch.no_grad():
        return ms_deform_attn(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    im2col_step: int,
) -> list[Tensor]:
    """Backward pass of the extension: gradients of value, sampling_locations and attention_weights."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
        output = ms_deform_attn(leaves[0], spatial_shapes, level_start_index, leaves[1], leaves[2])
        return list(torch.autograd.grad(output, leaves, grad_output))


class MSDeformAttnFunction:
    """Replacement for the original's autograd function; the operator itself supports autograd."""

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Call the operator; `im2col_step` is ignored."""
        return ms_deform_attn(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )


class MSDeformAttn(DeformableAttention):
    """The original's attention layer, with the same arguments and state dict."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4) -> None:
        super().__init__(d_model, n_levels, n_heads, n_points, value_channels=d_model)
        self.d_model, self.n_levels, self.n_heads, self.n_points = d_model, n_levels, n_heads, n_points
        self.im2col_step = 64

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from query (B, Q, C) at reference_points (B, Q, L, 2 or 4) to input_flatten (B, S, C).

        `input_padding_mask` is (B, S) bool, True = padding. Returns (B, Q, C).
        """
        return self.attend(
            query,
            input_flatten,
            reference_points,
            input_spatial_shapes,
            input_level_start_index,
            input_padding_mask,
        )
