"""The config in a training checkpoint: enough to test and to predict, and never executed."""

import os

import pytest
import torch

from ddetr.apis import init_detector, load_config
from ddetr.engine.saved_config import KEPT, find_checkpoint, saved_config
from ddetr.utils import CheckpointError


def _with(text):
    return {'meta': {'cfg': text}}


@pytest.mark.parametrize('name', ['detr_shapes', 'faster-rcnn_shapes', 'dino-4scale_swin-t_8xb2-12e_coco'])
def test_saved_config_restores_everything_needed_for_testing(name):
    cfg = load_config(name)
    saved = saved_config(_with(cfg.pretty_text), 'a.pth')
    assert set(saved) == set(KEPT) & set(cfg)
    for key, value in saved.items():
        assert value == cfg[key], key


def test_names_with_a_scope_are_read(tiny_run):
    text = load_config(tiny_run.config).pretty_text
    scoped = text.replace("type='LoadAnnotations'", "type='mmdet.LoadAnnotations'")
    assert scoped != text
    assert saved_config(_with(scoped), 'a.pth').to_dict() == saved_config(_with(text), 'a.pth').to_dict()


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        (
            'model = dict(type="os.system", command="touch {marker}")',
            r"model.type='os.system' is not registered",
        ),
        (
            'model = dict(type="evil")',
            r"model.type='evil' is not registered",
        ),  # a module beside the working folder
        ('model = dict(a=dict(type="mmengine.load", file="{marker}"))', r"model.a.type='mmengine.load'"),
        ('model = [dict(type="subprocess.Popen")]', r"model.0.type='subprocess.Popen'"),
        ('model = open("{marker}", "w").close()', 'is not a plain literal'),
        ('open("{marker}", "w").close()', 'line 1 is not an assignment'),
        ('custom_imports = dict(imports=["evil"])\nmodel = dict()', 'custom_imports'),
        ('model = dict(', 'is not a plain literal'),
        ('x = 1', 'has no model'),
    ],
)
def test_config_that_executes_code_is_rejected(tiny_run, tmp_path, monkeypatch, text, says):
    marker = tmp_path / 'marker'
    (tmp_path / 'evil.py').write_text(f'open({os.fspath(marker)!r}, "w").close()')
    monkeypatch.syspath_prepend(tmp_path)
    content = torch.load(tiny_run.checkpoint, weights_only=False)
    content['meta']['cfg'] = text.format(marker=marker)
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=says) as error:
        init_detector(checkpoint=tmp_path / 'a.pth')
    assert 'ass the config as well' in str(error.value)
    assert not marker.exists()


def test_weights_alone_need_a_config():
    with pytest.raises(CheckpointError, match=r'a\.pth does not contain its training config'):
        saved_config({'state_dict': {}}, 'a.pth')


def test_work_directory_resolves_to_its_best_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match='contains no checkpoint'):
        find_checkpoint(tmp_path)
    for age, name in enumerate(['best_coco_bbox_mAP_epoch_3.pth', 'epoch_9.pth', 'epoch_10.pth']):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert find_checkpoint(tmp_path) == str(tmp_path / 'best_coco_bbox_mAP_epoch_3.pth')
    (tmp_path / 'best_coco_bbox_mAP_epoch_3.pth').unlink()
    assert find_checkpoint(tmp_path) == str(tmp_path / 'epoch_10.pth')
    assert find_checkpoint(tmp_path / 'epoch_9.pth') == str(tmp_path / 'epoch_9.pth')
    (tmp_path / 'model.safetensors').touch()
    assert find_checkpoint(tmp_path) == str(tmp_path)  # of Hugging Face
