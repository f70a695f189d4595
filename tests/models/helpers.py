"""Small detectors for tests: the configs' own, made narrow."""

from pathlib import Path

from mmengine.config import Config, ConfigDict

from ddetr.models.detectors import BaseDetector
from ddetr.registry import MODELS

DEFORMABLE_VARIANTS = (
    'deformable-detr',
    'deformable-detr-refine',
    'deformable-detr-refine-twostage',
    'deformable-detr-single-scale',
    'deformable-detr-single-scale-dc5',
)
DETR_CONFIGS = (
    'detr_r50_16xb4-500e_coco',
    'detr-dc5_r50_64xb1-500e_coco',
    'detr-dc5_r50_16xb2-50e_coco',
    'detr-dc5-plus_r50_16xb2-50e_coco',
)


def narrow(root: Path, config: str, width: int = 64, num_queries: int = 20) -> ConfigDict:
    """The model of a config below configs/ with ResNet-18 and a transformer of 1 + 2 narrow layers."""
    return _narrow(Config.fromfile(root / 'configs' / config).model, width, num_queries)


def narrow_deformable_detr(root: Path, variant: str, width: int = 64, num_queries: int = 20) -> ConfigDict:
    """The model config of a variant of the paper with ResNet-18 and a transformer of 1 + 2 narrow layers."""
    return narrow(root, f'deformable_detr/{variant}_r50_16xb2-50e_coco.py', width, num_queries)


def narrow_detr(root: Path, name: str, width: int = 64, num_queries: int = 20) -> ConfigDict:
    """The same for the model of one of DETR's rows in the table."""
    return narrow(root, f'detr/{name}.py', width, num_queries)


def _narrow(config: ConfigDict, width: int, num_queries: int) -> ConfigDict:
    config.num_queries = num_queries
    config.backbone.update(depth=18, init_cfg=None)
    config.neck.update(in_channels=[c // 4 for c in config.neck.in_channels], out_channels=width)
    config.positional_encoding.num_feats = width // 2
    config.bbox_head.update(num_classes=7, embed_dims=width)
    for part, layers in ((config.encoder, 1), (config.decoder, 2)):
        part.num_layers = layers
        part.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=96, ffn_drop=0.0)
        for key in part.layer_cfg.keys() - {'ffn_cfg'}:
            part.layer_cfg[key].update(embed_dims=width, dropout=0.0)
    return config


def build(config: ConfigDict) -> BaseDetector:
    """The detector in eval mode."""
    return MODELS.build(config).eval()
