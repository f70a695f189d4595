"""Warnings about random backbones."""

import pytest
import torch
from torch import nn

from ddetr.weights import pretrained


class OneConv(nn.Sequential):
    """A backbone without norms."""


class SelfLoading(nn.Module):
    """A backbone that loads its weights in its own constructor, as many from other projects do."""

    def __init__(self, norm: nn.Module, trained: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), norm)
        if trained:
            state = {name: torch.randn_like(t.float()) for name, t in norm.state_dict().items()}
            norm.load_state_dict(state)


def warnings_of(backbone, monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(pretrained, 'print_log', lambda text, **_: said.append(text))
    model = nn.Module()
    model.backbone = backbone
    pretrained.warn_of_random_backbone(model)
    return said


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=['batch norm', 'group norm'])
def test_backbone_that_loads_its_own_weights_gives_no_warning(norm, monkeypatch):
    assert warnings_of(SelfLoading(norm, trained=True), monkeypatch) == []


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=['batch norm', 'group norm'])
def test_backbone_without_weights_gives_a_warning(norm, monkeypatch):
    assert len(warnings_of(SelfLoading(norm, trained=False), monkeypatch)) == 1


def test_warning_names_the_backbone_without_suggesting_wrong_weights(monkeypatch):
    (said,) = warnings_of(OneConv(nn.Conv2d(3, 4, 3)), monkeypatch)
    assert 'of this OneConv' in said
    assert 'resnet' not in said.lower()
