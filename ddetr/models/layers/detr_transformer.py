"""Encoder and decoder of DETR (Carion et al., "End-to-End Object Detection with Transformers", appendix A.3)."""

import torch
from torch import Tensor, nn

from ddetr.models.checkpointing import check_num_cp, checkpointed
from ddetr.structures import FlatMap

from .transformer_blocks import FFN, MultiheadAttention, check_layer_norm, init_transformer_weights


class DetrTransformerEncoderLayer(nn.Module):
    """Self-attention over all tokens and an FFN, each followed by a layer norm."""

    def __init__(self, self_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict | None = None) -> None:
        super().__init__()
        check_layer_norm(norm_cfg)
        self.self_attn = MultiheadAttention(**self_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        self.norms = nn.ModuleList(nn.LayerNorm(ffn_cfg.get('embed_dims', 256)) for _ in range(2))

    def forward(self, tokens: Tensor, flat: FlatMap) -> Tensor:
        """`tokens` (B, S, C) -> (B, S, C)."""
        tokens = self.self_attn(tokens, tokens, tokens, flat.pos_embed, flat.pos_embed, flat.pad_mask)
        return self.norms[1](self.ffn(self.norms[0](tokens)))


class DetrTransformerEncoder(nn.Module):
    """Stack of encoder layers.

    Args:
        num_layers: Number of layers.
        layer_cfg: Keyword arguments of `DetrTransformerEncoderLayer`.
        num_cp: Number of layers, counted from the first, whose activations are recomputed in the backward pass.
    """

    def __init__(self, num_layers: int, layer_cfg: dict, num_cp: int = -1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DetrTransformerEncoderLayer(**layer_cfg) for _ in range(num_layers))
        self.num_cp = check_num_cp(num_cp, num_layers, 'encoder')
        init_transformer_weights(self)

    def forward(self, flat: FlatMap) -> Tensor:
        """Encode the tokens of `flat`. Return the memory (B, S, C)."""
        tokens = flat.tokens
        for i, layer in enumerate(self.layers):
            tokens = checkpointed(layer, tokens, flat) if i < self.num_cp else layer(tokens, flat)
        return tokens


class DetrTransformerDecoderLayer(nn.Module):
    """Self-attention, cross-attention to the memory and an FFN, each followed by a layer norm."""

    def __init__(
        self, self_attn_cfg: dict, cross_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict | None = None
    ) -> None:
        super().__init__()
        check_layer_norm(norm_cfg)
        self.self_attn = MultiheadAttention(**self_attn_cfg)
        self.cross_attn = MultiheadAttention(**cross_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        self.norms = nn.ModuleList(nn.LayerNorm(ffn_cfg.get('embed_dims', 256)) for _ in range(3))

    def forward(self, query: Tensor, query_pos: Tensor, memory: Tensor, flat: FlatMap) -> Tensor:
        """`query`, `query_pos` (B, Q, C), `memory` (B, S, C) -> (B, Q, C)."""
        query = self.norms[0](self.self_attn(query, query, query, query_pos, query_pos))
        query = self.cross_attn(query, memory, memory, query_pos, flat.pos_embed, flat.pad_mask)
        return self.norms[2](self.ffn(self.norms[1](query)))


class DetrTransformerDecoder(nn.Module):
    """Stack of decoder layers. The states of every layer are normalised before the head.

    Args:
        num_layers: Number of layers.
        layer_cfg: Keyword arguments of `DetrTransformerDecoderLayer`.
        post_norm_cfg: The norm before the head, `dict(type='LN')`.
        return_intermediate: Accepted for compatibility with MMDetection configs. The states of all layers are always
            returned.
        num_cp: Number of layers, counted from the first, whose activations are recomputed in the backward pass.

    Raises:
        ValueError: `post_norm_cfg` is not a layer norm.
    """

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        post_norm_cfg: dict | None = None,
        return_intermediate: bool = True,
        num_cp: int = -1,
    ) -> None:
        super().__init__()
        del return_intermediate
        check_layer_norm(post_norm_cfg)
        self.layers = nn.ModuleList(DetrTransformerDecoderLayer(**layer_cfg) for _ in range(num_layers))
        self.num_cp = check_num_cp(num_cp, num_layers, 'decoder')
        self.post_norm = nn.LayerNorm(layer_cfg['ffn_cfg'].get('embed_dims', 256))
        init_transformer_weights(self)

    def forward(self, query_pos: Tensor, memory: Tensor, flat: FlatMap) -> Tensor:
        """Decode learned queries, whose content starts as zeros.

        Args:
            query_pos: (B, Q, C).
            memory: (B, S, C).
            flat: Positions and padding of the memory.

        Returns:
            States of all N layers, (N, B, Q, C).
        """
        query = torch.zeros_like(query_pos)
        hidden = []
        for i, layer in enumerate(self.layers):
            inputs = query, query_pos, memory, flat
            query = checkpointed(layer, *inputs) if i < self.num_cp else layer(*inputs)
            hidden.append(self.post_norm(query))  # the next layer receives the unnormalised state
        return torch.stack(hidden)
