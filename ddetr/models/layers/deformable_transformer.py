"""Encoder and decoder of Deformable DETR (sections 4.1 and 4.2, appendix A.4), and their input tokens."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ddetr.models.checkpointing import check_num_cp, checkpointed
from ddetr.structures import DecoderInput, DecoderStates, FlatFeatures
from ddetr.utils.errors import ConfigError

from .positional_encoding import SinePositionalEncoding, encode_boxes, pad_mask_on
from .transformer_blocks import (
    FFN,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    check_layer_norm,
    init_transformer_weights,
)

BoxPredictor = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, hidden (B, Q, C), reference (B, Q, 2 or 4)) -> boxes (B, Q, 4), cx cy w h in 0..1."""


class DeformableDetrTransformerEncoderLayer(nn.Module):
    """Deformable self-attention over the tokens of all levels and an FFN, each followed by a layer norm."""

    def __init__(self, self_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict | None = None) -> None:
        super().__init__()
        check_layer_norm(norm_cfg)
        self.self_attn = MultiScaleDeformableAttention(**self_attn_cfg)
        self.ffn = FFN(**ffn_cfg)
        self.norms = nn.ModuleList(nn.LayerNorm(ffn_cfg.get('embed_dims', 256)) for _ in range(2))

    def forward(self, tokens: Tensor, reference_norm: Tensor, flat: FlatFeatures) -> Tensor:
        """`tokens` (B, S, C), `reference_norm` (B, S, L, 2) -> (B, S, C)."""
        levels = flat.spatial_shapes, flat.level_start_index, flat.pad_mask
        tokens = self.self_attn(tokens, flat.pos_embed, tokens, reference_norm, *levels)
        return self.norms[1](self.ffn(self.norms[0](tokens)))


class DeformableDetrTransformerEncoder(nn.Module):
    """Stack of encoder layers.

    Args:
        num_layers: Number of layers.
        layer_cfg: Keyword arguments of `DeformableDetrTransformerEncoderLayer`.
        num_levels: Number of feature levels; set by the detector.
        num_cp: Number of layers, counted from the first, whose activations are recomputed in the backward pass.
    """

    def __init__(self, num_layers: int, layer_cfg: dict, num_levels: int, num_cp: int = -1) -> None:
        super().__init__()
        layer_cfg = _with_levels(layer_cfg, 'self_attn_cfg', num_levels)
        self.layers = nn.ModuleList(
            DeformableDetrTransformerEncoderLayer(**layer_cfg) for _ in range(num_layers)
        )
        self.num_cp = check_num_cp(num_cp, num_layers, 'encoder')
        init_transformer_weights(self)

    def forward(self, flat: FlatFeatures) -> Tensor:
        """Encode the tokens of `flat`. Return the memory (B, S, C)."""
        centres = token_centres(flat)  # (B, S, 2), relative to the unpadded image
        reference_norm = centres[:, :, None] * flat.valid_ratios[:, None]  # (B, S, L, 2), to the padded maps
        tokens = flat.tokens
        for i, layer in enumerate(self.layers):
            inputs = tokens, reference_norm, flat
            tokens = checkpointed(layer, *inputs) if i < self.num_cp else layer(*inputs)
        return tokens


class DeformableDetrTransformerDecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention to the memory and an FFN, each followed by a layer norm."""

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
        self,
        query: Tensor,
        query_pos: Tensor,
        reference_norm: Tensor,
        memory: Tensor,
        flat: FlatFeatures,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Update the queries.

        Args:
            query, query_pos: (B, Q, C).
            reference_norm: (B, Q, L, 2 or 4), relative to the padded feature maps.
            memory: (B, S, C).
            flat: Shapes and padding of the memory.
            attn_mask: (Q, Q) bool mask of the self-attention, True = not attended to.
        """
        query = self.self_attn(query, query, query, query_pos, query_pos, attn_mask=attn_mask)
        levels = flat.spatial_shapes, flat.level_start_index, flat.pad_mask
        query = self.cross_attn(self.norms[0](query), query_pos, memory, reference_norm, *levels)
        return self.norms[2](self.ffn(self.norms[1](query)))


class DeformableDetrTransformerDecoder(nn.Module):
    """Stack of decoder layers with optional box refinement between layers.

    Args:
        num_layers: Number of layers.
        layer_cfg: Keyword arguments of `DeformableDetrTransformerDecoderLayer`.
        num_levels: Number of feature levels; set by the detector.
        return_intermediate: Accepted for compatibility with MMDetection configs. The states of all layers are always
            returned.
        post_norm_cfg: `dict(type='LN')` to normalise the states before the head; None for no norm.
        refine: Whether each layer's boxes become the next layer's references (section 4.2); set by the detector.
        look_forward_twice: Whether gradients flow from a layer's boxes to the previous layer's boxes (DINO, Zhang et
            al., 2022, section 3.5).
        position_from_reference: Whether each layer computes the query positions from the references instead of using
            `DecoderInput.position` (DAB-DETR, Liu et al., 2022, section 4.2).
        num_cp: Number of layers, counted from the first, whose activations are recomputed in the backward pass.

    Raises:
        ValueError: `post_norm_cfg` is not a layer norm, `look_forward_twice` without `refine`, or a different
            `num_levels` in `layer_cfg`.
    """

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        num_levels: int,
        return_intermediate: bool = True,
        post_norm_cfg: dict | None = None,
        refine: bool = False,
        look_forward_twice: bool = False,
        position_from_reference: bool = False,
        num_cp: int = -1,
    ) -> None:
        super().__init__()
        del return_intermediate
        check_layer_norm(post_norm_cfg)
        if look_forward_twice and not refine:
            raise ValueError('look_forward_twice=True needs box refinement: set with_box_refine=True')
        self.refine, self.look_forward_twice = refine, look_forward_twice
        layer_cfg = _with_levels(layer_cfg, 'cross_attn_cfg', num_levels)
        channels = layer_cfg['ffn_cfg'].get('embed_dims', 256)
        self.layers = nn.ModuleList(
            DeformableDetrTransformerDecoderLayer(**layer_cfg) for _ in range(num_layers)
        )
        self.num_cp = check_num_cp(num_cp, num_layers, 'decoder')
        self.norm = None if post_norm_cfg is None else nn.LayerNorm(channels)
        self.ref_point_head = PositionMLP(channels) if position_from_reference else None
        init_transformer_weights(self)

    def forward(
        self, init: DecoderInput, memory: Tensor, flat: FlatFeatures, predict_boxes: BoxPredictor
    ) -> DecoderStates:
        """Decode the queries of `init`, attending to the `memory` (B, S, C) with the levels of `flat`."""
        query, reference = init.content, init.reference_norm
        # box offsets are relative to `start`: the reference, detached or not
        start = reference
        hidden, boxes = [], []
        for i, layer in enumerate(self.layers):
            ratios = flat.valid_ratios.repeat(1, 1, reference.shape[-1] // 2)  # (B, L, 2 or 4)
            on_padded_maps = reference[:, :, None] * ratios[:, None]  # (B, Q, L, 2 or 4)
            position = init.position
            if self.ref_point_head is not None:
                position = self.ref_point_head(on_padded_maps[:, :, 0])  # (B, Q, C)
            inputs = query, position, on_padded_maps, memory, flat, init.self_attn_mask
            query = checkpointed(layer, *inputs) if i < self.num_cp else layer(*inputs)
            hidden.append(query if self.norm is None else self.norm(query))
            boxes.append(predict_boxes(i, hidden[-1], start))
            if self.refine and layer is not self.layers[-1]:
                refined = boxes[-1]
                if self.norm is not None or self.look_forward_twice:  # refine with the unnormalised state
                    refined = predict_boxes(i, query, reference)
                reference = refined.detach()  # no gradient through the sampling locations of later layers
                start = refined if self.look_forward_twice else reference
        return DecoderStates(torch.stack(hidden), torch.stack(boxes))


class PositionMLP(nn.Module):
    """Query positions (B, Q, C) from reference boxes (B, Q, 4) (DAB-DETR, section 4.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_feats = channels // 2
        self.layers = nn.ModuleList([nn.Linear(2 * channels, channels), nn.Linear(channels, channels)])

    def forward(self, boxes_cxcywh_norm: Tensor) -> Tensor:
        """Encode the boxes with y before x, like the encoder positions, and apply the two layers."""
        encoded = encode_boxes(boxes_cxcywh_norm[..., [1, 0, 2, 3]], self.num_feats)  # (B, Q, 2C)
        return self.layers[1](self.layers[0](encoded).relu())


def flatten_levels(
    feats: tuple[Tensor, ...], pad_mask: Tensor, encoding: SinePositionalEncoding, level_embed: Tensor
) -> FlatFeatures:
    """Flatten feature levels to tokens with positions, level embeddings and padding mask.

    Args:
        feats: L x (B, C, H_l, W_l).
        pad_mask: (B, H, W) padding mask of the images, True = padding.
        encoding: Positional encoding within a level.
        level_embed: (L, C) level embeddings.

    Raises:
        ConfigError: The numbers of levels in `feats` and `level_embed` differ.
    """
    if len(feats) != len(level_embed):
        raise ConfigError(f'the neck returns {len(feats)} levels, but num_feature_levels={len(level_embed)}')
    tokens, positions, masks, ratios = [], [], [], []
    for feat, embed in zip(feats, level_embed, strict=True):
        mask = pad_mask_on(feat, pad_mask)  # (B, H_l, W_l)
        pos = encoding(mask).to(feat.dtype)  # (B, C, H_l, W_l)
        tokens.append(feat.flatten(2).transpose(1, 2))
        positions.append(pos.flatten(2).transpose(1, 2) + embed)
        masks.append(mask.flatten(1))
        height, width = mask.shape[1:]
        valid = (~mask).float()
        ratios.append(torch.stack([valid[:, 0, :].sum(1) / width, valid[:, :, 0].sum(1) / height], -1))
    sizes = tuple((feat.shape[-2], feat.shape[-1]) for feat in feats)
    shapes = torch.tensor(sizes, device=feats[0].device)  # (L, 2)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])  # (L,)
    sequence, position, padding = (torch.cat(parts, 1) for parts in (tokens, positions, masks))
    return FlatFeatures(sequence, position, padding, shapes, starts, torch.stack(ratios, 1), sizes)


def token_centres(flat: FlatFeatures) -> Tensor:
    """Centre (x, y) of each token relative to the unpadded image, (B, S, 2)."""
    centres = []
    for (height, width), ratio in zip(flat.level_sizes_hw, flat.valid_ratios.unbind(1), strict=True):
        # not arange(0.5, n), which torch.onnx types as int64
        y = (torch.arange(height, device=ratio.device) + 0.5) / height
        x = (torch.arange(width, device=ratio.device) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing='ij')
        centres.append(torch.stack([grid_x, grid_y], -1).view(1, -1, 2) / ratio[:, None])  # (B, H*W, 2)
    return torch.cat(centres, 1)


def token_anchors(flat: FlatFeatures, size: float = 0.05) -> tuple[Tensor, Tensor]:
    """Square anchor at each token with side `size` * 2^level relative to the image, in logit space.

    Returns:
        Anchors (B, S, 4) and a mask (B, S) of unusable tokens. Tokens in the padding or within 1% of the image border
        are unusable and get infinite logits (section 4.2 and the original code).
    """
    centres = token_centres(flat)  # (B, S, 2)
    sides = torch.cat(
        [
            centres.new_full((height * width,), size * 2.0**level)
            for level, (height, width) in enumerate(flat.level_sizes_hw)
        ]
    )  # (S,)
    sides = sides[None, :, None].expand_as(centres)
    anchors = torch.cat([centres, sides], -1)
    inside = ((anchors > 0.01) & (anchors < 0.99)).all(-1)  # (B, S)
    unusable = flat.pad_mask | ~inside
    return (anchors / (1 - anchors)).log().masked_fill(unusable[..., None], torch.inf), unusable


def _with_levels(layer_cfg: dict, attention: str, num_levels: int) -> dict:
    """Add `num_levels` to the config of the deformable attention; raise ValueError if it has a different value."""
    said = layer_cfg[attention].get('num_levels', num_levels)
    if said != num_levels:
        raise ValueError(f'{attention}.num_levels={said}, but num_feature_levels={num_levels}')
    return {**layer_cfg, attention: {**layer_cfg[attention], 'num_levels': num_levels}}
