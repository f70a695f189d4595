"""Checks that need trained weights: which classes they predict, and which normalisation they were trained with."""

import numpy as np
import pytest
import torch

from ddetr.analysis.diagnosis.classes import check_confusion
from ddetr.analysis.diagnosis.findings import Unchecked
from ddetr.analysis.diagnosis.normalisation import Colours, check_normalisation
from ddetr.analysis.diagnosis.subject import Subject
from ddetr.engine.config import load_config
from ddetr.registry import MODELS
from tests.conftest import ROOT


@MODELS.register_module()
class Remembering(torch.nn.Module):
    """Stands for a trained detector: finds every box, numbers the classes in its own order, knows its own colours."""

    num_classes = 6

    def __init__(self, data_preprocessor, mean=None):
        super().__init__()
        self.data_preprocessor = MODELS.build(data_preprocessor)
        self.order = torch.nn.Parameter(torch.arange(6.0))  # label -> predicted class
        self.mean = mean

    def init_weights(self):
        pass

    def forward(self, inputs, data_samples, mode):
        if mode == 'loss':
            return {
                'loss': (inputs.mean((0, 2, 3)) - torch.tensor(self.mean)).abs().sum() * self.order[0].exp()
            }
        for sample in data_samples:
            found = sample.gt_instances.clone()
            found.bboxes = sample.to_original(found.bboxes)
            found.labels = self.order[found.labels].long()
            found.scores = torch.full((len(found.labels),), 0.9)
            sample.pred_instances = found
        return data_samples

    def parse_losses(self, losses):
        return losses['loss'], losses


@pytest.fixture(scope='module')
def shapes(draw_shapes):
    return draw_shapes(num_train=48, num_val=4, size=96)


@pytest.fixture
def subject(shapes, tmp_path):
    """Setup of a `Remembering` detector with a checkpoint that has the given class order."""

    def build(order=range(6), **model):
        cfg = load_config(
            ROOT / 'tests/configs/tiny_shapes.py',
            {f'{split}_dataloader.dataset.data_root': str(shapes) for split in ('train', 'val', 'test')},
        )
        preprocessor = {**cfg.model.data_preprocessor, **model.pop('data_preprocessor', {})}
        cfg.model = {'type': 'Remembering', 'data_preprocessor': preprocessor, **model}
        # a config that does not say how images were normalised
        content = {
            'meta': {'cfg': 'work_dir = "run"'},
            'state_dict': {'order': torch.tensor([*map(float, order)])},
        }
        torch.save(content, tmp_path / 'trained.pth')
        return Subject(cfg, str(tmp_path / 'trained.pth'))

    return build


def test_weights_that_number_the_classes_like_the_data_are_fine(subject):
    measured = check_confusion(subject())
    assert not measured.findings
    assert '100% get the class of their label' in measured.facts[0]


def test_weights_with_another_class_order_are_a_wrong_mapping(subject):
    one = subject(order=(1, 0, 2, 3, 5, 4))
    (finding,) = check_confusion(one).findings
    assert finding.name == 'classes'
    assert f'{one.name_of(0)} as {one.name_of(1)}' in finding.evidence
    assert '100% by exchanging classes' in finding.evidence


def test_without_trained_weights_the_classes_are_not_checked(subject):
    one = subject()
    one.checkpoint = None
    with pytest.raises(Unchecked, match='--checkpoint'):
        check_confusion(one)


def colours_seen(subject):
    """Mean network input per channel under the config's normalisation."""
    found = [example.inputs.float().mean((1, 2)).numpy() for example in subject.examples]
    preprocessor = subject.model.data_preprocessor
    mean, std = (getattr(preprocessor, name).flatten().numpy() for name in ('mean', 'std'))
    return (np.mean(found, 0)[::-1] - mean) / std  # the pipeline reads BGR


def test_weights_trained_with_the_config_s_normalisation_are_fine(subject):
    mean = tuple(map(float, colours_seen(subject())))
    assert not check_normalisation(subject(mean=mean)).findings


def test_weights_that_prefer_imagenet_s_normalisation_are_named(subject):
    mean = tuple(map(float, colours_seen(subject())))
    other = {'mean': [90.0] * 3, 'std': [58.395, 57.12, 57.375]}
    measured = check_normalisation(subject(mean=mean, data_preprocessor=other))
    (finding,) = measured.findings
    assert finding.name == 'normalisation'
    assert 'the mean' in finding.title
    assert 'its loss is' in finding.evidence


def test_difference_is_described():
    rgb = Colours((123.7, 116.3, 103.5), (58.4, 57.1, 57.4), 'RGB')
    assert rgb.differs(rgb) == ''
    assert rgb.differs(rgb._replace(order='BGR')) == 'the order of the channels (RGB and BGR)'
    assert rgb.differs(rgb._replace(std=(1.0, 1.0, 1.0))) == 'the scale (std)'
    assert rgb.differs(rgb._replace(mean=(90.0, 90.0, 90.0))) == 'the mean'
