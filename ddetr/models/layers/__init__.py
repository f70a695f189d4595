from .attention import MultiheadAttention, MultiScaleDeformableAttention
from .deformable_transformer import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
)
from .detr_transformer import DetrTransformerDecoder, DetrTransformerEncoder
from .ffn import FFN, build_box_mlp
from .positional_encoding import SinePositionalEncoding

__all__ = [
    'FFN',
    'DeformableDetrTransformerDecoder',
    'DeformableDetrTransformerEncoder',
    'DetrTransformerDecoder',
    'DetrTransformerEncoder',
    'MultiScaleDeformableAttention',
    'MultiheadAttention',
    'SinePositionalEncoding',
    'build_box_mlp',
]
