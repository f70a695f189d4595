"""Number and order of classes, compared before training."""

from types import SimpleNamespace

import pytest
from torch import nn

from ddetr.engine.class_check import check_classes
from ddetr.utils import ConfigError
from tests.models.helpers import build, narrow_deformable_detr


def data(*classes: str) -> SimpleNamespace:
    return SimpleNamespace(metainfo={'classes': classes})


def test_head_with_wrong_number_of_classes_raises(repo_root):
    model = build(narrow_deformable_detr(repo_root, 'deformable-detr'))  # 7 classes
    check_classes(model, {'train_dataloader': data(*'abcdefg'), 'val_dataloader': data(*'abcdefg')})
    with pytest.raises(
        ConfigError, match=r'bbox_head.num_classes=7, but .* train_dataloader has 3 .* num_classes=3'
    ):
        check_classes(model, {'train_dataloader': data('cat', 'dog', 'cow')})


def test_datasets_with_different_class_order_raise():
    with pytest.raises(ConfigError, match='train_dataloader and val_dataloader have different classes'):
        check_classes(nn.Identity(), {'train_dataloader': data('a', 'b'), 'val_dataloader': data('b', 'a')})


def test_components_without_classes_are_skipped():
    check_classes(nn.Linear(2, 2), {'train_dataloader': [1, 2], 'val_dataloader': data('a')})
