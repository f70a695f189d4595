"""Diagnosis of setups with one fault each: the fault is reported first, and nothing for a correct setup."""

import json
import runpy
import sys

import pytest
import torch

from ddetr.analysis.diagnosis import diagnose
from ddetr.analysis.diagnosis.sabotage import SABOTAGES, sabotaged
from ddetr.engine.config import load_config
from ddetr.registry import MODELS
from tests.conftest import ROOT


@pytest.fixture(scope='module')
def shapes(draw_shapes):
    return draw_shapes(num_train=72, num_val=48, size=96)


@pytest.fixture(scope='module')
def set_up(shapes):
    """Config of a tiny detector with frozen batch norms and a backbone with statistics, like a pretrained one."""
    options = {
        **{f'{split}_dataloader.dataset.data_root': str(shapes) for split in ('train', 'val', 'test')},
        'optim_wrapper.optimizer.lr': 1e-3,
    }
    cfg = load_config(ROOT / 'tests/configs/tiny_shapes.py', options)
    torch.manual_seed(0)
    backbone = MODELS.build({**cfg.model.backbone, 'norm_eval': False}).train()
    for _ in range(30):
        backbone(torch.randn(2, 3, 96, 96))
    torch.save(backbone.state_dict(), shapes.parent / 'backbone.pth')
    cfg.model.backbone.init_cfg = {'type': 'Pretrained', 'checkpoint': str(shapes.parent / 'backbone.pth')}
    return cfg


@pytest.mark.parametrize('name', SABOTAGES)
def test_the_right_cause_comes_first(name, set_up, tmp_path):
    diagnosis, _ = diagnose(sabotaged(set_up, name, tmp_path))
    assert (diagnosis.causes[0].name if diagnosis.causes else '') == SABOTAGES[name], str(diagnosis)


def test_classes_in_another_order_and_number_are_a_wrong_mapping(set_up):
    order = ('square', 'circle', 'triangle', 'star', 'ring', 'cross')
    for changes, says in (
        ({'train_dataloader.dataset.metainfo': {'classes': order}}, 'have different classes or class orders'),
        ({'model.bbox_head.num_classes': 7}, 'num_classes=7'),
        ({'train_dataloader.dataset.metainfo': {'classes': ('circle', 'dog')}}, "no category named 'dog'"),
    ):
        cfg = set_up.copy()
        cfg.merge_from_dict(changes)
        diagnosis, _ = diagnose(cfg)
        assert diagnosis.causes[0].name == 'classes'
        assert says in diagnosis.causes[0].evidence


def test_only_the_order_of_channels_is_wrong(set_up):
    cfg = set_up.copy()
    cfg.merge_from_dict({'model.data_preprocessor.bgr_to_rgb': False})
    diagnosis, _ = diagnose(cfg)
    assert diagnosis.causes[0].name == 'normalisation'
    assert 'the order of the channels' in diagnosis.causes[0].title
    assert 'the model sees BGR' in diagnosis.causes[0].evidence


def test_unloadable_weights_are_the_cause(set_up):
    cfg = set_up.copy()
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': 'nowhere.pth'})
    diagnosis, _ = diagnose(cfg)
    assert [finding.name for finding in diagnosis.causes] == ['weights']
    assert 'nowhere.pth does not exist' in diagnosis.causes[0].evidence


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a tool in this process; return its output."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools/analysis' / name), run_name='__main__')
        return capsys.readouterr().out

    return run


def test_third_party_detector_can_be_diagnosed_and_overfitted(call, shapes, tmp_path):
    config = ROOT / 'tests/own_detector/grid_shapes.py'
    printed = call(
        'diagnose.py', config, '--out-dir', tmp_path, '--overfit', 60, '--num-images', 3, '--cfg-options',
        *(f'{split}_dataloader.dataset.data_root={shapes}' for split in ('train', 'val', 'test')),
        'default_hooks.logger.interval=5',
    )  # fmt: skip
    assert 'NO CAUSE FOUND' in printed
    assert 'note: the backbone starts from random weights' in printed
    assert 'on 3 images: AP ' in printed
    assert sum(path.is_file() for path in (tmp_path / 'overfit/pictures').rglob('*')) == 3
    page = (tmp_path / 'diagnosis.html').read_text()
    assert 'NO CAUSE FOUND' in page
    assert page.count('<img') == len(list(tmp_path.glob('sheet_*.jpg'))) == 2
    logged = [
        json.loads(line)
        for file in (tmp_path / 'overfit').rglob('scalars.json')
        for line in file.read_text().splitlines()
    ]
    losses = [entry['loss'] for entry in logged if 'loss' in entry]
    assert losses[-1] < losses[0]


def test_browse_dataset_draws_augmented_images(call, shapes, tmp_path):
    config = ROOT / 'tests/own_detector/grid_shapes.py'
    printed = call(
        'browse_dataset.py', config, '--num-images', 5, '--repeats', 3, '--output-dir', tmp_path, '--cfg-options',
        f'train_dataloader.dataset.data_root={shapes}',
    )  # fmt: skip
    assert '15 pictures and 2 sheets' in printed
    pictures = sorted(path for path in tmp_path.glob('*.jpg') if not path.name.startswith('sheet'))
    assert len(pictures) == 15
    # the same image, drawn again with another flip or size
    assert len({path.read_bytes() for path in pictures if path.stem.endswith(pictures[0].stem[3:])}) > 1
