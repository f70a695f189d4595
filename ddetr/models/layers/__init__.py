from .attention import MultiheadAttention, MultiScaleDeformableAttention
from .deformable_transformer import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
)
from .ffn import FFN, build_box_mlp
from .positional_encoding import SinePositionalEncoding

__all__ = [
    'FFN',
    'DeformableDetrTransformerDecoder',
    'DeformableDetrTransformerEncoder',
    'MultiScaleDeformableAttention',
    'MultiheadAttention',
    'SinePositionalEncoding',
    'build_box_mlp',
]
