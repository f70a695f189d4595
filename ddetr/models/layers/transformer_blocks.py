"""Building blocks of transformer layers: attention, multi-scale deformable attention, feed-forward networks."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from ddetr_ops.attention import DeformableAttention
from mmcv.cnn import build_activation_layer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MACS_PER_SAMPLED_NUMBER = 5  # four neighbours and the attention weight
RANDOM_STEPS = 2**16  # of the numbers that decide about dropout
TILE_ROWS = 1024  # of the feed-forward network on a CPU: 4 MB of 1,024 hidden channels stay in the cache


class Dropout(nn.Dropout):
    """`nn.Dropout`, about three times as fast on a CPU and with a quarter of the memory for the backward pass.

    PyTorch draws 64 random bits for each element, in one thread. Here numpy draws 16, from a seed by PyTorch's
    generator: the random state of a checkpoint determines them, too. On other devices, in `torch.compile` and in
    evaluation this is `nn.Dropout`.

    Args:
        p: Probability of zeroing an element; rounded to a multiple of 1 / 65536 on a CPU.
        before_relu: Whether the result goes only into a ReLU, which stops the gradients of zeros.
    """

    def __init__(self, p: float = 0.5, before_relu: bool = False) -> None:
        super().__init__(p)
        self.before_relu = before_relu

    def forward(self, input: Tensor) -> Tensor:
        """(...) -> (...)."""
        if not self.training or self.p == 0 or input.device.type != 'cpu' or torch.compiler.is_compiling():
            return super().forward(input)
        dropped, scale = draw_dropped(input.shape, self.p)
        scaled = input * scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.before_relu):
            return scaled.masked_fill_(dropped, 0)


def draw_dropped(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """Draw which elements of a tensor on the CPU are dropped, bool, and the factor of the others."""
    if p == 0:
        return torch.zeros(shape, dtype=torch.bool), 1.0
    limit = round(p * RANDOM_STEPS)
    seed = int(torch.randint(2**62, ()))
    count = math.prod(shape)
    drawn = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)[:count]
    return torch.from_numpy(drawn < limit).view(shape), RANDOM_STEPS / max(RANDOM_STEPS - limit, 1)


class MultiheadAttention(nn.Module):
    """PyTorch's attention with positions added to query and key, dropout and a residual connection.

    Args:
        embed_dims: Channels of query, key and value.
        num_heads: Number of attention heads.
        dropout: Dropout of the attention weights and, unless `proj_drop` is given, of the output.
        proj_drop: Dropout of the output; None uses `dropout`.
        batch_first: Accepted for compatibility with MMDetection configs. Inputs are always (B, Q, C).
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        proj_drop: float | None = None,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        del batch_first
        self.attn = nn.MultiheadAttention(embed_dims, num_heads, dropout, batch_first=True)
        self.proj_drop = Dropout(dropout if proj_drop is None else proj_drop)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        key_pad_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from queries (B, Q, C) to keys and values (B, S, C).

        `key_pad_mask` (B, S) and `attn_mask` (Q, S) are bool, True = not attended to.
        """
        masks = {'key_padding_mask': key_pad_mask, 'attn_mask': attn_mask}
        out = self.attn(query + query_pos, key + key_pos, value, **masks, need_weights=False)[0]
        return query + self.proj_drop(out)


class MultiScaleDeformableAttention(DeformableAttention):
    """Multi-scale deformable attention: attends to a few sampling points around a reference.

    Source: Deformable DETR, section 4.1, equation 3.

    Args:
        embed_dims: Channels C of query and value.
        num_heads: Number of attention heads, M.
        num_levels: Number of feature levels, L.
        num_points: Number of sampling points per head and level, P; a list sets it per level.
        dropout: Dropout of the output.
        im2col_step, batch_first: Accepted for compatibility with MMDetection configs; no effect.

    Raises:
        ValueError: `embed_dims` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int | Sequence[int] = 4,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
    ) -> None:
        del im2col_step, batch_first
        if embed_dims % num_heads:
            raise ValueError(f'embed_dims={embed_dims} is not divisible by num_heads={num_heads}')
        channels = embed_dims // num_heads
        if channels & (channels - 1):
            message = f'{channels} channels per head is not a power of two: the op uses slower kernels'
            warnings.warn(message, stacklevel=2)
        super().__init__(embed_dims, num_levels, num_heads, num_points, value_channels=embed_dims)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        reference_norm: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        value_pad_mask: Tensor,
    ) -> Tensor:
        """Sample `value` around each query's reference and add the result to `query`. Returns (B, Q, C).

        Args:
            query, query_pos: (B, Q, C).
            value: (B, S, C), the flattened feature levels.
            reference_norm: (B, Q, L, 2) points or (B, Q, L, 4) boxes, relative to the padded feature maps.
            spatial_shapes: (L, 2) int64, (h, w) of each level.
            level_start_index: (L,) int64, first token of each level.
            value_pad_mask: (B, S) bool, True = padding, treated as zeros.
        """
        attended = self.attend(
            query + query_pos, value, reference_norm, spatial_shapes, level_start_index, value_pad_mask
        )  # (B, Q, C)
        return query + self.dropout(attended)

    def uncounted_macs(self, output: Tensor) -> int:
        """Multiply-adds of the op for an output (B, Q, C): 5 B Q C per sampling point of a head.

        Each sampled value is interpolated from four neighbours and multiplied by its attention weight.
        """
        return MACS_PER_SAMPLED_NUMBER * output.numel() * sum(self.points_of_level)


class FFN(nn.Module):
    """Feed-forward network with a residual connection: linear, activation, dropout, ..., linear, dropout.

    Parameter names are those of mmcv's FFN: `layers.0.0`, ..., `layers.{num_fcs - 1}`.

    Args:
        embed_dims: Channels of input and output.
        feedforward_channels: Channels of the hidden layers.
        num_fcs: Number of linear layers, at least 2.
        act_cfg: mmcv activation config; default ReLU.
        ffn_drop: Dropout after each linear layer.
        add_identity: Whether to add the input to the output.

    Raises:
        ValueError: `num_fcs` is less than 2.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        feedforward_channels: int = 1024,
        num_fcs: int = 2,
        act_cfg: dict | None = None,
        ffn_drop: float = 0.0,
        add_identity: bool = True,
    ) -> None:
        super().__init__()
        if num_fcs < 2:
            raise ValueError(f'FFN needs at least 2 linear layers, got num_fcs={num_fcs}')
        layers: list[nn.Module] = []
        widths = [embed_dims] + [feedforward_channels] * (num_fcs - 1)
        for a, b in pairwise(widths):
            activation = build_activation_layer(act_cfg or {'type': 'ReLU'})
            steps = [activation, Dropout(ffn_drop)]
            if isinstance(
                activation, nn.ReLU
            ):  # equal in this order, and the backward pass needs one result less
                activation.inplace = ffn_drop > 0  # dropout's result, which nothing else needs
                steps = [Dropout(ffn_drop, before_relu=True), activation]
            layers.append(nn.Sequential(nn.Linear(a, b), *steps))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], embed_dims), Dropout(ffn_drop))
        self.add_identity = add_identity
        self.has_one_relu = num_fcs == 2 and isinstance(activation, nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        trains_on_cpu = self.training and torch.is_grad_enabled() and x.device.type == 'cpu'
        layers: Any = self.layers
        linears = (layers[0][0], layers[1]) if trains_on_cpu and self.has_one_relu else ()
        # replaced or hooked layers, as by libraries for low-rank adaptation, are called
        plain = all(
            type(m) is nn.Linear and m.bias is not None and not (m._forward_hooks or m._forward_pre_hooks)
            for m in linears
        )
        if not (linears and plain) or torch.compiler.is_compiling() or torch.is_autocast_enabled('cpu'):
            out = layers(x)
        else:
            first, second = linears
            weights = first.weight, first.bias, second.weight, second.bias
            dropout, last = layers[0][1], layers[2]
            out = last(RowTiles.apply(x.flatten(0, -2), *weights, dropout.p).view_as(x))
        return x + out if self.add_identity else out


class RowTiles(torch.autograd.Function):
    """Linear, ReLU, dropout and linear of rows (N, C), `TILE_ROWS` at a time.

    The hidden channels (N, H) are kept for the backward pass; everything else of their size stays in the cache. On a
    CPU this saves a fifth of the time and more than half of the memory of the four layers.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, p: float
    ) -> Tensor:
        """(N, C) -> (N, C'); `p` is the dropout of the hidden channels."""
        hidden, out = rows.new_empty(len(rows), len(weight1)), rows.new_empty(len(rows), len(weight2))
        dropped, scale = draw_dropped(hidden.shape, p)
        scaled = weight2 * scale  # instead of the hidden channels
        for part, hide, drop, result in zip(
            *(t.split(TILE_ROWS) for t in (rows, hidden, dropped, out)), strict=True
        ):
            torch.addmm(bias1, part, weight1.T, out=hide).relu_().masked_fill_(drop, 0)
            torch.addmm(bias2, hide, scaled.T, out=result)
        ctx.save_for_backward(rows, hidden, weight1, scaled)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """(N, C') -> the gradients of `forward`'s arguments."""
        rows, hidden, weight1, scaled = ctx.saved_tensors
        grad_rows, grad_weight1, grad_weight2 = map(torch.zeros_like, (rows, weight1, scaled))
        grad_bias1 = torch.zeros_like(weight1[:, 0])
        for part, hide, of_out, of_part in zip(
            *(t.split(TILE_ROWS) for t in (rows, hidden, grad, grad_rows)), strict=True
        ):
            of_hidden = torch.ops.aten.threshold_backward(of_out @ scaled, hide, 0)  # zeros where `hide` is 0
            torch.mm(of_hidden, weight1, out=of_part)
            grad_weight1.addmm_(of_hidden.T, part)
            grad_weight2.addmm_(of_out.T, hide)
            grad_bias1 += of_hidden.sum(0)
        return grad_rows, grad_weight1, grad_bias1, grad_weight2.mul_(ctx.scale), grad.sum(0), None


def build_box_mlp(embed_dims: int, num_hidden: int) -> nn.Sequential:
    """MLP with `num_hidden` linear + ReLU layers and a linear layer to 4 box coordinates."""
    layers: list[nn.Module] = []
    for _ in range(num_hidden):
        layers += [nn.Linear(embed_dims, embed_dims), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(embed_dims, 4))


def check_layer_norm(norm_cfg: dict | None) -> None:
    """Raise ValueError unless `norm_cfg` is None or a layer norm."""
    if norm_cfg is not None and norm_cfg.get('type') != 'LN':
        raise ValueError(
            f"the transformer supports only layer norms: set norm_cfg=dict(type='LN'), got {norm_cfg}"
        )


def init_transformer_weights(module: nn.Module) -> None:
    """Xavier-initialise all matrices (DETR, appendix A.4), then reset deformable attention to its own init."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for child in module.modules():
        if isinstance(child, MultiScaleDeformableAttention):
            child.reset_parameters()
