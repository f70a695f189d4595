"""The three checkpoint commands, on real files."""

import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DeformableDetrForObjectDetection

from ddetr.apis import inference_detector, init_detector
from ddetr.registry import MODELS
from ddetr.utils.errors import CheckpointError
from ddetr.weights import load_weights

THIN_REFINED = """
_base_ = '{base}'
model = dict(
    num_queries=10,
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64], out_channels=32),
    positional_encoding=dict(num_feats=16),
    bbox_head=dict(num_classes=3, embed_dims=32),
    encoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=32, num_heads=4, num_points=2),
        ffn_cfg=dict(embed_dims=32, feedforward_channels=16))),
    decoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=32, num_heads=4),
        cross_attn_cfg=dict(embed_dims=32, num_heads=4, num_points=2),
        ffn_cfg=dict(embed_dims=32, feedforward_channels=16))))
"""


@pytest.fixture
def config(repo_root, tmp_path) -> Path:
    base = repo_root / 'configs/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py'
    path = tmp_path / 'thin.py'
    path.write_text(THIN_REFINED.format(base=base))
    return path


@pytest.fixture
def checkpoint(config, tmp_path) -> Path:
    """As a training saves it: with an optimizer's state and the dataset's class names."""
    model = MODELS.build(Config.fromfile(config).model)
    optimizer = torch.optim.AdamW(model.parameters())
    content = {
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'message_hub': {},
        'meta': {'epoch': 7, 'iter': 700, 'dataset_meta': {'classes': ('cat', 'dog', 'owl')}},
    }
    torch.save(content, tmp_path / 'epoch_7.pth')
    return tmp_path / 'epoch_7.pth'


@pytest.fixture
def tool(repo_root, monkeypatch, capsys):
    """Run a converter in this process and return what it prints."""

    def run(name: str, *args) -> str:
        path = repo_root / 'tools/converters' / f'{name}.py'
        monkeypatch.setattr(sys, 'argv', [str(path), *map(str, args)])
        runpy.run_path(str(path))['main']()
        return capsys.readouterr().out

    return run


def test_convert_there_and_back(tool, config, checkpoint, tmp_path):
    before = torch.load(checkpoint)['state_dict']
    counters = {key for key in before if key.endswith('num_batches_tracked')}
    zeros = {key for key in before if re.fullmatch(r'neck\..*conv\.bias', key)}
    twice = {key for key in before if 'reg_branches' in key}  # the original's refining decoder owns them, too
    in_projections = {key for key in before if 'in_proj' in key}  # q, k and v apart
    for project, name, written in (
        ('original', 'o.pth', len(before) - len(counters) + len(twice)),
        ('mmdet', 'm.safetensors', len(before) - len(zeros)),
        ('hf', 'h', len(before) - len(counters) + 2 * len(in_projections)),
        ('ddetr', 'd.safetensors', len(before)),
    ):
        out = tool('convert_weights', checkpoint, tmp_path / name, '--to', project, '--config', config)
        assert out.splitlines()[-1].endswith(f': {len(before)} tensors read, {written} written')
        tool('convert_weights', tmp_path / name, tmp_path / 'back.pth', '--to', 'ddetr')
        after = torch.load(tmp_path / 'back.pth')
        assert json.loads(after['meta']['classes']) == ['cat', 'dog', 'owl']
        assert before.keys() - counters - zeros <= after['state_dict'].keys() <= before.keys()
        for key, value in after['state_dict'].items():
            assert torch.equal(value, before[key]), (project, key)
    theirs = DeformableDetrForObjectDetection.from_pretrained(tmp_path / 'h')
    assert theirs.config.encoder_attention_heads == 4
    assert theirs.config.encoder_n_points == 2
    assert theirs.config.id2label == {0: 'cat', 1: 'dog', 2: 'owl'}


def test_unsupported_conversions_raise_and_write_nothing(tool, checkpoint, tmp_path):
    content = torch.load(checkpoint)
    del content['state_dict']['decoder.layers.1.norms.2.bias']
    torch.save(content, tmp_path / 'part.pth')
    out = tmp_path / 'out.pth'
    with pytest.raises(
        CheckpointError, match=r'1 missing tensors: decoder.layers.1.norms.2.bias\. .* --allow-partial'
    ):
        tool('convert_weights', tmp_path / 'part.pth', out, '--to', 'original')
    content['state_dict']['mask_head.weight'] = torch.zeros(1)
    torch.save(content, tmp_path / 'part.pth')
    with pytest.raises(CheckpointError, match=r'not match 8 heads x 4 points x 4 levels: pass .* --config'):
        tool('convert_weights', checkpoint, tmp_path / 'hf', '--to', 'hf')
    with pytest.raises(CheckpointError, match='would overwrite the input'):
        tool('convert_weights', checkpoint, checkpoint, '--to', 'ddetr')
    assert not out.exists()
    tool('convert_weights', tmp_path / 'part.pth', out, '--to', 'original', '--allow-partial')
    assert 'transformer.decoder.layers.1.norm3.weight' in torch.load(out)['model']


def test_identify_prints_format_variant_and_config(tool, checkpoint, tmp_path):
    tool('convert_weights', checkpoint, tmp_path / 'o.pth', '--to', 'original')
    lines = dict(line.split(':', 1) for line in tool('identify', checkpoint).splitlines())
    assert lines['model'].strip() == (
        'Deformable DETR (ResNet-18), 4 feature levels, with box refinement, 10 queries, 3 classes'
    )
    assert lines['classes'].strip() == 'cat, dog, owl'
    assert lines['trained'].strip() == 'epoch 7, iter 700'
    out = tool('identify', tmp_path / 'o.pth')
    assert 'format:    the original Deformable DETR\n' in out
    assert 'config:    configs/deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py\n' in out


def test_identify_knows_the_quickstarts_detector(tool, repo_root, tmp_path):
    config = 'configs/quickstart/deformable-detr-refine-twostage_shapes.py'
    torch.save(MODELS.build(Config.fromfile(repo_root / config).model).state_dict(), tmp_path / 'q.pth')
    lines = dict(line.split(':', 1) for line in tool('identify', tmp_path / 'q.pth').splitlines())
    assert lines['config'].strip() == config
    assert (
        lines['model']
        .strip()
        .startswith('Deformable DETR (ResNet-18), 4 feature levels, with box refinement')
    )
    assert lines['format'].strip() == "ddetr's or MMDetection's Deformable DETR"


def test_published_file_contains_only_the_weights(tool, config, checkpoint, tmp_path):
    path = Path(tool('publish_model', checkpoint, tmp_path / 'mine.safetensors').strip())
    assert path.name == f'mine-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.safetensors'
    before = torch.load(checkpoint)['state_dict']
    after = load_file(path)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in after)
    assert path.stat().st_mode == checkpoint.stat().st_mode  # others may read it
    with safe_open(path, 'pt') as file:
        assert file.metadata()['epoch'] == '7'
    report = load_weights(MODELS.build(Config.fromfile(config).model), path)
    assert report.classes == ('cat', 'dog', 'owl')
    assert list(tmp_path.glob('.*')) == []


def test_a_detector_finds_the_same_from_every_format(tool, config, checkpoint, coco_root, tmp_path):
    """Each format through the call that demo and tests use, on a real image."""
    image = str(next(coco_root.glob('val*/*.jpg')))
    options = {'test_dataloader.dataset.pipeline.1.scale': (128, 96)}
    content = torch.load(checkpoint)
    randomize_branches(content['state_dict'])
    torch.save(content, checkpoint)
    found = {}
    for project, name in (('ddetr', 'd.safetensors'), ('original', 'o.pth'), ('mmdet', 'm.pth'), ('hf', 'h')):
        tool('convert_weights', checkpoint, tmp_path / name, '--to', project, '--config', config)
        model = init_detector(config, tmp_path / name, 'cpu', options)
        assert model.dataset_meta['classes'] == ('cat', 'dog', 'owl')
        found[project] = inference_detector(model, image).pred_instances
    assert found['ddetr'].scores.std() > 0.01
    for project, detections in found.items():
        for key in ('scores', 'labels', 'bboxes'):
            assert torch.equal(detections[key], found['ddetr'][key]), (project, key)


def randomize_branches(state: dict[str, torch.Tensor]) -> None:
    """Make an untrained model give different predictions at different locations."""
    for name, value in state.items():
        if '_branches.' in name:
            torch.nn.init.normal_(value, std=0.5)


def test_sharded_checkpoint_is_read_and_cannot_reference_other_folders(tool, config, checkpoint, tmp_path):
    tool('convert_weights', checkpoint, tmp_path / 'h', '--to', 'hf', '--config', config)
    state = load_file(tmp_path / 'h/model.safetensors')
    names = sorted(state)
    shards = {'model-00001-of-00002.safetensors': names[::2], 'model-00002-of-00002.safetensors': names[1::2]}
    for shard, part in shards.items():
        save_file({name: state[name] for name in part}, tmp_path / 'h' / shard)
    (tmp_path / 'h/model.safetensors').unlink()
    index = tmp_path / 'h/model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {name: s for s, part in shards.items() for name in part}}))
    report = load_weights(MODELS.build(Config.fromfile(config).model), tmp_path / 'h')
    assert report.missing == report.unexpected == ()
    index.write_text(json.dumps({'weight_map': {'a': '../h/model-00001-of-00002.safetensors'}}))
    with pytest.raises(
        CheckpointError, match=r"names '../h/model-0.*', which is not a .safetensors file in the same folder"
    ):
        tool('identify', tmp_path / 'h')


def test_command_line_errors_are_one_clear_message(repo_root, tmp_path):
    """Run in a separate process, like a user."""
    (tmp_path / 'cut.safetensors').write_bytes(b'\x10\x00\x00\x00')
    run = subprocess.run(
        [sys.executable, repo_root / 'tools/converters/identify.py', tmp_path / 'cut.safetensors'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(repo_root)},
    )
    assert run.returncode == 2
    assert run.stdout == ''
    assert re.fullmatch(
        r'error: checkpoint \S+cut.safetensors is not a valid safetensors file, .*\n', run.stderr
    )
