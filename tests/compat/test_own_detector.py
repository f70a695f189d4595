"""Custom detector outside the package, without and with its own weight family."""

import runpy
import sys

import pytest
import torch
from torch import nn

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, train_detector
from ddetr.registry import MODELS
from ddetr.utils import CheckpointError
from ddetr.weights import (
    ClassRows,
    Layout,
    Rule,
    WeightFamily,
    WeightFormat,
    load_weights,
    read_weights,
)
from ddetr.weights.convert import state_for
from tests.conftest import ROOT

# The stem's names are those of the original Deformable DETR, which this is not.
MODULE = """
import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import nn
from torch.nn import functional as F

from ddetr.registry import MODELS


@MODELS.register_module(force=True)
class OneBoxDetector(BaseModel):
    def __init__(self, num_classes, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.stem = nn.Conv2d(3, 8, 16, 16)
        self.classify = nn.Linear(8, num_classes)
        self.box = nn.Linear(8, 4)

    @property
    def num_classes(self):
        return self.classify.out_features

    def reset_classes(self, num_classes):
        self.classify = nn.Linear(8, num_classes)
        return ['classify.weight', 'classify.bias']

    def forward(self, inputs, data_samples=None, mode='tensor'):
        hidden = self.stem(inputs).mean((2, 3))
        scores, boxes = self.classify(hidden), self.box(hidden).sigmoid()
        if mode == 'loss':
            labels = torch.stack([sample.gt_instances.labels.sum() % self.num_classes for sample in data_samples])
            return {'loss_cls': F.cross_entropy(scores, labels), 'loss_box': boxes.mean()}
        for sample, score, box in zip(data_samples, scores.softmax(1), boxes):
            corners = torch.cat([box[:2] * 30, 32 + box[2:] * 30])[None]
            best = score.max(0)
            sample.pred_instances = InstanceData(bboxes=corners, scores=best[0][None], labels=best[1][None])
        return data_samples
"""


@pytest.fixture
def own_config(tiny_run, tmp_path, monkeypatch):
    """Config with a detector in the same folder."""
    (tmp_path / 'one_box.py').write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / 'config.py'
    path.write_text(
        f'_base_ = {str(tiny_run.config)!r}\n'
        "custom_imports = dict(imports=['one_box'])\n"
        "model = dict(_delete_=True, type='OneBoxDetector', num_classes=6,\n"
        "             data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32))\n"
    )
    yield path
    sys.modules.pop('one_box', None)


def identify(monkeypatch, capsys, *args) -> dict[str, str]:
    capsys.readouterr()
    monkeypatch.setattr(sys, 'argv', ['identify.py', *map(str, args)])
    runpy.run_path(str(ROOT / 'tools/converters/identify.py'))['main']()
    lines = capsys.readouterr().out.splitlines()
    return {key: value.strip() for key, value in (line.split(':', 1) for line in lines)}


def test_a_detector_without_a_family_trains_tests_fine_tunes_and_is_identified(
    own_config, tmp_path, monkeypatch, capsys
):
    train_detector(own_config, TrainOptions(work_dir=str(tmp_path / 'a')))
    checkpoint = next((tmp_path / 'a').glob('epoch_*.pth'))
    evaluate_detector(own_config, checkpoint, EvalOptions(work_dir=str(tmp_path / 'b')))
    facts = identify(monkeypatch, capsys, checkpoint, '--config', own_config)
    assert facts['format'] == 'unknown model family'
    assert facts['model'] == 'a custom model, 6 classes'
    assert facts['classes'].startswith('circle, square')
    with pytest.raises(CheckpointError, match=r"its 6 tensor names, such as '.*', match no known format"):
        identify(monkeypatch, capsys, checkpoint)

    three = {
        f'{s}_dataloader.dataset.metainfo': {'classes': ('star', 'ring', 'cross')} for s in ('train', 'val')
    }
    options = {
        **three,
        'model.num_classes': 3,
        'load_from': str(checkpoint),
        'train_cfg.max_epochs': 1,
        'optim_wrapper.optimizer.lr': 0.0,
        'optim_wrapper.optimizer.weight_decay': 0.0,
    }
    runner = train_detector(own_config, TrainOptions(work_dir=str(tmp_path / 'c'), cfg_options=options))
    before, after = torch.load(checkpoint, weights_only=False)['state_dict'], runner.model.state_dict()
    assert after['classify.weight'].shape == (3, 8)
    for name in before.keys() - {'classify.weight', 'classify.bias'}:
        assert torch.equal(after[name], before[name]), name
    assert (
        '2 class tensors reinitialised; 3 classes instead of 6'
        in next((tmp_path / 'c').glob('*/*.log')).read_text()
    )
    optimized = {id(p) for group in runner.optim_wrapper.optimizer.param_groups for p in group['params']}
    assert all(
        id(p) in optimized for p in runner.model.parameters()
    )  # those that the optimizer was built for


def test_names_of_a_detector_without_a_family_are_its_own_even_if_a_format_has_them(tmp_path):
    """A detector that wraps the original code has the original parameter names."""
    model = nn.Module()
    model.transformer, model.input_proj = nn.Module(), nn.ModuleList([nn.Sequential(nn.Conv2d(1, 1, 1))])
    model.transformer.level_embed = nn.Parameter(torch.ones(4, 2))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'a.pth')
    nn.init.zeros_(model.transformer.level_embed)
    report = load_weights(model, tmp_path / 'a.pth')
    assert (report.mapped, report.missing, report.unexpected) == (3, (), ())
    assert model.transformer.level_embed.all()


OWN = WeightFamily(
    name='two layers',
    landmarks=('first.weight', 'second.weight'),
    layout_of=lambda state, hints: Layout(len(state['second.bias'])),
    class_rows=(ClassRows('second.{p}'),),
    formats=(
        WeightFormat(
            'elsewhere',
            'the two layers of elsewhere',
            lambda layout, style: (Rule('a.{p}', 'first.{p}'), Rule('b.{p}', 'second.{p}')),
            landmarks=('a.weight', 'b.weight'),
        ),
    ),
)


def test_a_family_outside_the_package_is_read_and_written(tmp_path, monkeypatch):
    class TwoLayers(nn.Module):
        weight_family = OWN
        num_classes = 80

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 3), nn.Linear(3, 80)

    state = {'a.weight': torch.rand(3, 2), 'a.bias': torch.rand(3)}
    state |= {'b.weight': torch.rand(91, 3), 'b.bias': torch.rand(91)}
    torch.save(state, tmp_path / 'elsewhere.pth')
    with pytest.raises(CheckpointError, match='no known format'):
        read_weights(tmp_path / 'elsewhere.pth')
    monkeypatch.setitem(MODELS.module_dict, 'TwoLayers', TwoLayers)  # as `register_module` does
    file = read_weights(tmp_path / 'elsewhere.pth')
    assert (file.weights.title, file.weights.layout.num_classes) == ('the two layers of elsewhere', 80)
    model = TwoLayers()
    load_weights(model, tmp_path / 'elsewhere.pth')
    assert torch.equal(model.second.bias[:11], state['b.bias'][1:12])  # 12 is no category
    back = state_for('elsewhere', file.weights, coco=True).state
    assert torch.equal(back['b.weight'][1], state['b.weight'][1])
    assert back['b.bias'][12] == -1e4


class OtherBackbone(nn.Module):
    """No family describes it."""

    def __init__(self, checkpoint: str):
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 4, 4), nn.BatchNorm2d(4)
        self.checkpoint = checkpoint

    def init_weights(self):
        from ddetr.weights import PretrainedInit

        PretrainedInit(self.checkpoint)(self)


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.', 'module.backbone.'])
def test_any_backbone_starts_from_its_own_names_or_a_detectors(prefix, tmp_path):
    source = OtherBackbone('')
    state = {prefix + name: value for name, value in source.state_dict().items()}
    if 'backbone' in prefix:
        state[prefix.replace('backbone.', 'head.weight')] = torch.zeros(1)
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    backbone = OtherBackbone(str(tmp_path / 'a.pth'))
    backbone.init_weights()
    assert torch.equal(backbone.patches.weight, source.patches.weight)
    del state[f'{prefix}norm.bias']
    torch.save({'state_dict': state}, tmp_path / 'a.pth')
    with pytest.raises(
        CheckpointError, match=r'a.pth does not match OtherBackbone .*: 1 of its 7 .* norm.bias'
    ):
        backbone.init_weights()
