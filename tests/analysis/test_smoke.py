import torch
from torch import nn

from ddetr.analysis.smoke import reduced
from ddetr.engine.config import check_config, load_config
from ddetr.registry import MODELS
from tests.conftest import ROOT

BASE = ROOT / 'configs/deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'


@MODELS.register_module()
class PatchBackbone(nn.Module):
    """Custom backbone whose constructor has none of the usual keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.patches(images),)


def test_reduced_configs_use_only_options_of_the_backbone(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(
        f'_base_ = {str(BASE)!r}\n'
        "model = dict(backbone=dict(_delete_=True, type='PatchBackbone', width=16), neck=dict(in_channels=[16]))"
    )
    cfg = load_config(path)
    options = reduced(cfg, 'data/coco', (96, 64), images=2)
    changed = load_config(path, options)
    check_config(changed)
    assert changed.model.backbone == {'type': 'PatchBackbone', 'width': 16}
    assert MODELS.build(changed.model).backbone.patches.out_channels == 16


def test_reduced_configs_train_the_whole_backbone():
    cfg = load_config(BASE)
    assert cfg.model.backbone.frozen_stages == 1
    changed = load_config(BASE, reduced(cfg, 'data/coco', (96, 64), images=2))
    backbone = MODELS.build(changed.model.backbone)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.init_cfg is None
    assert not changed.model.backbone.norm_eval
