"""Encoder and decoder of Deformable DETR (sections 4.1 and 4.2, appendix A.4)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddetr.structures import DecoderStates, FlatFeatures, QueryInit

from .transformer_blocks import FFN, MultiheadAttention, MultiScaleDeformableAttention

BoxPredictor = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, hidden (B, Q, C), reference (B, Q, 2 or 4)) -> boxes (B, Q, 4), cx cy w h in 0..1."""


class DeformableDetrTransformerEncoderLayer(nn.Module):
    """Deformable self-attention over all levels' tokens, then an FFN, each followed by its norm."""

    def __init__(self, self_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict | None = None) -> None:
        super().__init__()
        check_layer_norm(norm_cfg)
        self.self_attn = MultiScaleDeformableAttention(**self_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        self.norms = nn.ModuleList(nn.LayerNorm(ffn_cfg.get('embed_dims', 256)) for _ in range(2))

    def forward(self, tokens: Tensor, reference_norm: Tensor, flat: FlatFeatures) -> Tensor:
        """`tokens` (B, S, C), `reference_norm` (B, S, L, 2) -> (B, S, C)."""
        tokens = self.self_attn(
            tokens,
            flat.pos_embed,
            tokens,
            reference_norm,
            flat.spatial_shapes,
            flat.level_start_index,
            flat.pad_mask,
        )
        return self.norms[1](self.ffn(self.norms[0](tokens)))


class DeformableDetrTransformerEncoder(nn.Module):
    """A stack of encoder layers.

    Args:
        num_layers: how many.
        layer_cfg: keywords of `DeformableDetrTransformerEncoderLayer`.
    """

    def __init__(self, num_layers: int, layer_cfg: dict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DeformableDetrTransformerEncoderLayer(**layer_cfg) for _ in range(num_layers)
        )
        init_transformer_weights(self)

    def forward(self, flat: FlatFeatures) -> Tensor:
        """-> memory (B, S, C)."""
        centres = token_centres(flat)  # (B, S, 2), relative to the unpadded image
        reference_norm = centres[:, :, None] * flat.valid_ratios[:, None]  # (B, S, L, 2), to the padded maps
        tokens = flat.tokens
        for layer in self.layers:
            tokens = layer(tokens, reference_norm, flat)
        return tokens


class DeformableDetrTransformerDecoderLayer(nn.Module):
    """Self-attention among queries, deformable attention to the memory, FFN; each followed by its norm."""

    def __init__(
        self, self_attn_cfg: dict, cross_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict | None = None
    ) -> None:
        super().__init__()
        check_layer_norm(norm_cfg)
        self.self_attn = MultiheadAttention(**self_attn_cfg)
        self.cross_attn = MultiScaleDeformableAttention(**cross_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        self.norms = nn.ModuleList(nn.LayerNorm(ffn_cfg.get('embed_dims', 256)) for _ in range(3))

    def forward(
        self, query: Tensor, query_pos: Tensor, reference_norm: Tensor, memory: Tensor, flat: FlatFeatures
    ) -> Tensor:
        """`query`, `query_pos` (B, Q, C), `reference_norm` (B, Q, L, 2 or 4), `memory` (B, S, C) -> (B, Q, C)."""
        query = self.norms[0](self.self_attn(query, query, query, query_pos, query_pos))
        query = self.cross_attn(
            query,
            query_pos,
            memory,
            reference_norm,
            flat.spatial_shapes,
            flat.level_start_index,
            flat.pad_mask,
        )
        return self.norms[2](self.ffn(self.norms[1](query)))


class DeformableDetrTransformerDecoder(nn.Module):
    """A stack of decoder layers whose references may be refined from layer to layer.

    Args:
        num_layers: how many.
        layer_cfg: keywords of `DeformableDetrTransformerDecoderLayer`.
        return_intermediate: accepted for MMDetection's configs; all layers' states are always returned.
        post_norm_cfg: a norm after the last layer, which this decoder does not have: None.
    """

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        return_intermediate: bool = True,
        post_norm_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        del return_intermediate
        if post_norm_cfg is not None:
            raise ValueError(f"Deformable DETR's decoder has no final norm: post_norm_cfg={post_norm_cfg}")
        self.layers = nn.ModuleList(
            DeformableDetrTransformerDecoderLayer(**layer_cfg) for _ in range(num_layers)
        )
        init_transformer_weights(self)

    def forward(
        self, init: QueryInit, memory: Tensor, flat: FlatFeatures, predict_boxes: BoxPredictor, refine: bool
    ) -> DecoderStates:
        """Decode all queries.

        Args:
            init: queries and their references.
            memory: (B, S, C).
            flat: shapes, padding and valid ratios of the memory's levels.
            predict_boxes: the head's box branch.
            refine: whether each layer's boxes become the next layer's references (section 4.2).
        """
        query, reference = init.query, init.reference_norm
        hidden, boxes = [], []
        for i, layer in enumerate(self.layers):
            ratios = flat.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)  # (B, L, 2 or 4)
            on_padded_maps = reference[:, :, None] * ratios[:, None]  # (B, Q, L, 2 or 4)
            query = layer(query, init.query_pos, on_padded_maps, memory, flat)
            hidden.append(query)
            boxes.append(predict_boxes(i, query, reference))
            if refine:
                reference = boxes[-1].detach()  # a layer is not trained through the next one's references
        return DecoderStates(torch.stack(hidden), torch.stack(boxes))


def token_centres(flat: FlatFeatures) -> Tensor:
    """The centre of every token's pixel relative to the unpadded image, x before y: (B, S, 2)."""
    centres = []
    for (height, width), ratio in zip(flat.spatial_shapes.tolist(), flat.valid_ratios.unbind(1), strict=True):
        y = torch.arange(0.5, height, device=ratio.device) / height
        x = torch.arange(0.5, width, device=ratio.device) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing='ij')
        centres.append(torch.stack([grid_x, grid_y], -1).view(1, -1, 2) / ratio[:, None])  # (B, H*W, 2)
    return torch.cat(centres, 1)


def check_layer_norm(norm_cfg: dict | None) -> None:
    """ValueError unless `norm_cfg` is None or names the layer norm that these transformers have."""
    if norm_cfg is not None and norm_cfg.get('type') != 'LN':
        raise ValueError(f"the transformer's norms are layer norms: norm_cfg={norm_cfg}")


def init_transformer_weights(module: nn.Module) -> None:
    """Xavier for all matrices (DETR, appendix A.4), then deformable attention's own start."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for child in module.modules():
        if isinstance(child, MultiScaleDeformableAttention):
            child.reset_parameters()
