from .resnet import ResNet, ResNeXt

__all__ = ['ResNeXt', 'ResNet']
