"""A detector outside the package works with every command."""

import json
import re
import sys
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from ddetr.engine.config import load_config
from ddetr.registry import MODELS
from ddetr.weights import load_weights
from tests.conftest import ROOT, run_command

SHAPES = ('circle', 'square', 'triangle', 'star', 'ring', 'cross')
CONFIG = ROOT / 'tests/own_detector/grid_shapes.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The config with 16 training and 4 held-out images, and its run of 2 epochs."""
    from ddetr.datasets.shapes import ShapesRecipe, make_shapes

    folder = tmp_path_factory.mktemp('grid')
    make_shapes(folder / 'shapes', ShapesRecipe(num_train=16, num_val=4, size=64))
    config = folder / 'grid.py'
    (folder / 'grid_detector.py').write_text((CONFIG.parent / 'grid_detector.py').read_text())
    roots = '\n'.join(
        f'{split}_dataloader = dict(dataset=dict(data_root={str(folder / "shapes")!r}))'
        for split in ('train', 'val', 'test')
    )
    config.write_text(f'_base_ = {str(CONFIG)!r}\n{roots}\n')
    output = run_command(sys.executable, 'tools/train.py', config, '--work-dir', folder / 'run')
    assert 'Epoch(val) [2]' in output
    return config, folder, folder / 'run/epoch_2.pth'


def test_resumes(trained):
    config, folder, _ = trained
    output = run_command(
        sys.executable, 'tools/train.py', config, '--work-dir', folder / 'run', '--resume',
        '--cfg-options', 'train_cfg.max_epochs=3',
    )  # fmt: skip
    assert 'Epoch(val) [3]' in output
    assert (folder / 'run/epoch_3.pth').exists()


def test_can_be_tested_and_visualised(trained, tmp_path):
    config, folder, checkpoint = trained
    output = run_command(
        sys.executable,
        'tools/test.py',
        config,
        checkpoint,
        '--work-dir',
        tmp_path,
        '--show-dir',
        tmp_path / 'shown',
    )
    assert 'coco/bbox_mAP:' in output
    assert len(list((tmp_path / 'shown').iterdir())) == 4
    run_command(
        sys.executable, 'demo/image_demo.py', folder / 'shapes/val2017', config, checkpoint,
        '--out-dir', tmp_path / 'demo', '--score-thr', '0.001', '--prepare', 'fp32',
    )  # fmt: skip
    (first, *_) = sorted((tmp_path / 'demo').glob('*.json'))
    assert json.loads(first.read_text())['detections'][0]['class'] in SHAPES


def test_can_be_fine_tuned_on_other_classes(trained, tmp_path):
    config, _, checkpoint = trained
    three = tmp_path / 'three.py'
    data = "dict(dataset=dict(metainfo=dict(classes=('star', 'ring', 'cross'))))"
    three.write_text(
        f'_base_ = {str(config)!r}\nmodel = dict(bbox_head=dict(num_classes=3))\nload_from = {str(checkpoint)!r}\n'
        f'train_dataloader = {data}\nval_dataloader = {data}\ntest_dataloader = {data}\n'
        'train_cfg = dict(max_epochs=1)\n'
        'optim_wrapper = dict(optimizer=dict(lr=0.0, weight_decay=0.0))\n'
    )
    output = run_command(
        sys.executable, 'tools/train.py', three, '--work-dir', tmp_path / 'run', PYTHONPATH=str(config.parent)
    )
    assert '2 class tensors reinitialised' in output
    before = torch.load(checkpoint, weights_only=False)['state_dict']
    after = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)['state_dict']
    assert after['bbox_head.classes.weight'].shape[0] == 3
    assert all(torch.equal(before[name], after[name]) for name in before if 'classes' not in name)


def test_checkpoints_are_identified_and_converted_both_ways(trained, tmp_path):
    config, _, checkpoint = trained
    output = run_command(sys.executable, 'tools/converters/identify.py', checkpoint, '--config', config)
    assert re.search(r'model: +GridDetector of width 32, 6 classes', output)
    run_command(
        sys.executable, 'tools/converters/convert_weights.py', checkpoint, tmp_path / 'old.safetensors',
        '--to', 'original', '--config', config,
    )  # fmt: skip
    ours, theirs = (
        torch.load(checkpoint, weights_only=False)['state_dict'],
        load_file(tmp_path / 'old.safetensors'),
    )
    parts = ('net.0', 'net.1', 'net.2', 'net.3', 'cls', 'reg')
    assert theirs.keys() == {f'{part}.{p}' for part in parts for p in ('weight', 'bias')}
    assert torch.equal(theirs['reg.weight'], ours['bbox_head.box.weight'])
    model = MODELS.build(load_config(config).model)
    report = load_weights(model, tmp_path / 'old.safetensors')
    assert report.title == "GridDetector's first version"
    assert all(torch.equal(model.state_dict()[name], value) for name, value in ours.items())


def test_flops_and_speed_can_be_measured(trained):
    config, *_ = trained
    output = run_command(
        sys.executable, 'tools/analysis/model_table.py', config, '--size', '64', '64', '--parts'
    )
    widths = [3, 8, 16, 32, 32]
    params = sum(9 * a * b + b for a, b in pairwise(widths)) + 33 * 10
    assert f'{params / 1e6:.2f}' in output
    assert 'backbone' in output
    output = run_command(
        sys.executable, 'tools/analysis/benchmark.py', config, '--size', '64', '64', '--batch-sizes', '1',
        '--warmup', '0', '--repeats', '2',
    )  # fmt: skip
    assert re.search(r'training +4', output)


def test_learns(trained):
    """The loss decreases when training on the same batch repeatedly."""
    from ddetr.analysis.batches import random_batch

    model = MODELS.build(load_config(trained[0]).model).train()
    batch = model.data_preprocessor(random_batch(2, (64, 96), 6), training=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_docs_page_quotes_this_file():
    """Every Python block of docs/add_a_detector.md is part of the detector's file or its config."""
    files = [(CONFIG.parent / name).read_text() for name in ('grid_detector.py', 'grid_shapes.py')]
    page = (ROOT / 'docs/add_a_detector.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        assert any(block in file for file in files), block
