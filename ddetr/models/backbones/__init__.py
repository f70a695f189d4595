from .layer_decay import LayerDecayOptimWrapperConstructor
from .resnet import ResNet, ResNeXt
from .timm_backbone import TimmBackbone

__all__ = ['LayerDecayOptimWrapperConstructor', 'ResNeXt', 'ResNet', 'TimmBackbone']
