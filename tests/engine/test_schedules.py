import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

from ddetr.engine import DetRunner
from ddetr.engine.config import load_config
from ddetr.engine.schedules import resolve_shares
from ddetr.utils.errors import ConfigError
from tests.conftest import ROOT


@pytest.mark.parametrize(('epochs', 'milestones'), [(50, [40]), (12, [9]), (5, [4]), (2, [1]), (1, [1])])
def test_milestones_follow_the_number_of_epochs(epochs, milestones):
    config = {'type': 'MultiStepLR', 'by_epoch': True, 'milestones': [0.8]}
    assert resolve_shares(config, epochs, 1000)['milestones'] == milestones
    assert config['milestones'] == [0.8]


def test_fractions_of_iterations_and_integers():
    config = {'by_epoch': False, 'begin': 0.0, 'end': 0.25, 'T_max': 30, 'milestones': [5, 1.0], 'gamma': 0.1}
    assert resolve_shares(config, 3, 200) == {**config, 'begin': 0, 'end': 50, 'milestones': [5, 200]}


def test_fraction_above_one_raises():
    with pytest.raises(ConfigError, match=r'param_scheduler.end=1.5 is not a valid fraction'):
        resolve_shares({'end': 1.5}, 3, 200)


@pytest.mark.parametrize(
    ('config', 'epochs', 'drops'),
    [
        ('deformable_detr/deformable-detr_r50_16xb2-50e_coco', None, [40]),
        ('deformable_detr/deformable-detr_r50_16xb2-50e_coco', 20, [16]),
        ('detr/detr_r50_16xb4-500e_coco', None, [400]),
        ('detr/detr-dc5_r50_16xb2-50e_coco', None, [40]),
        ('detr/detr_r50_8xb2-150e_coco', None, [100]),
        ('detr/detr_r50_8xb2-500e_coco', None, [334]),
        ('dino/dino-4scale_r50_8xb2-12e_coco', None, [11]),
        ('dino/dino-4scale_r50_8xb2-24e_coco', None, [20]),
        ('dino/dino-5scale_r50_8xb2-36e_coco', None, [30]),
        ('deformable_detr/deformable-detr-refine-twostage-plus_r50_16xb2-36e_coco', None, [30]),
        ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', None, [8, 11]),
        ('faster_rcnn/faster-rcnn_r50_fpn_ms-109e_coco', None, [101, 106]),
        ('finetune/dino-4scale_r50_finetune', 10, [8]),
    ],
)
def test_learning_rate_drops_at_the_milestones_of_the_recipe(config, epochs, drops):
    options = {} if epochs is None else {'train_cfg.max_epochs': epochs}
    cfg = load_config(ROOT / f'configs/{config}.py', options)
    total = cfg.train_cfg.max_epochs
    rates = []
    optimizer = build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    schedules = [
        schedule
        for one in cfg.param_scheduler
        if one.type == 'MultiStepLR'
        for schedule in _built(one, total, optimizer)
    ]
    for _ in range(total):
        rates.append(optimizer.get_lr()['lr'][0])
        for schedule in schedules:
            schedule.step()
    assert [i for i in range(1, total) if rates[i] < 0.5 * rates[i - 1]] == drops


def _built(scheduler, epochs, optimizer):
    """Built as the Runner does, without the rest of it."""
    from mmengine.runner import BaseLoop

    class Loop(BaseLoop):
        def __init__(self):
            self._max_epochs, self._max_iters, self.max_epochs, self.max_iters = (
                epochs,
                10 * epochs,
                epochs,
                10 * epochs,
            )
            self.dataloader = range(10)

        def run(self):
            raise AssertionError

    runner = DetRunner.__new__(DetRunner)
    runner._train_loop, runner._train_dataloader = Loop(), range(10)
    runner.logger = type('Silent', (), {'debug': staticmethod(lambda text: None)})
    return runner._build_param_scheduler([scheduler], optimizer)
