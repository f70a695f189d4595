from .deformable_transformer import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
)
from .detr_transformer import DetrTransformerDecoder, DetrTransformerEncoder
from .positional_encoding import SinePositionalEncoding
from .roi_extractor import SingleRoIExtractor
from .transformer_blocks import FFN, MultiheadAttention, MultiScaleDeformableAttention, build_box_mlp

__all__ = [
    'FFN',
    'DeformableDetrTransformerDecoder',
    'DeformableDetrTransformerEncoder',
    'DetrTransformerDecoder',
    'DetrTransformerEncoder',
    'MultiScaleDeformableAttention',
    'MultiheadAttention',
    'SinePositionalEncoding',
    'SingleRoIExtractor',
    'build_box_mlp',
]
