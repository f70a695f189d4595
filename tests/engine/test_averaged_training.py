"""A training with averaged weights: what is validated, saved, kept as the best, published and tested."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from safetensors.torch import load_file

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, train_detector
from ddetr.registry import HOOKS
from ddetr.weights import read_checkpoint

NAME = 'encoder.layers.0.ffn.layers.1.weight'
HOOK_CONFIGS = [
    {'type': 'EMAHook', 'ema_type': 'ExpMomentumEMA', 'momentum': 0.1, 'gamma': 2},
    {'type': 'EarlyStoppingHook', 'monitor': 'coco/bbox_mAP', 'patience': 1},
    {'type': 'SeenWeights'},
]
seen: dict[str, list[torch.Tensor]] = {}


@HOOKS.register_module()
class SeenWeights(Hook):
    """Notes one of the weights after each training iteration and at each validation and test."""

    priority = 'VERY_LOW'

    def _note(self, runner, when):
        seen.setdefault(when, []).append(runner.model.state_dict()[NAME].clone())

    def after_train_iter(self, runner, *args, **kwargs):
        self._note(runner, 'train')

    def after_val_iter(self, runner, *args, **kwargs):
        self._note(runner, 'val')

    def after_test_iter(self, runner, *args, **kwargs):
        self._note(runner, 'test')


@pytest.fixture(scope='module')
def averaged_run(tiny_run, tmp_path_factory):
    """`tiny_run` once more, for at most 4 epochs. All its APs are 0: the first validation is the best one."""
    seen.clear()
    work_dir = tmp_path_factory.mktemp('averaged')
    options = {
        'custom_hooks': HOOK_CONFIGS,
        'default_hooks.checkpoint.save_best': 'coco/bbox_mAP',
        'train_cfg.max_epochs': 4,
    }
    runner = train_detector(tiny_run.config, TrainOptions(work_dir=str(work_dir), cfg_options=options))
    return runner, work_dir, {when: list(values) for when, values in seen.items()}


def averages(weights):
    """The average after each of these updates, by its definition."""
    share = [0.1 + 0.9 * 2.718281828459045 ** (-(1 + t) / 2) for t in range(len(weights))]
    found = [weights[0].double()]
    for weight, s in zip(weights[1:], share[1:], strict=True):
        found.append(found[-1] * (1 - s) + weight.double() * s)
    return found


def test_validation_uses_the_average_and_training_continues_without_it(averaged_run):
    runner, _, weights = averaged_run
    average = averages(weights['train'])
    torch.testing.assert_close(weights['val'][0].double(), average[3], rtol=0, atol=1e-6)
    assert not torch.equal(weights['val'][0], weights['train'][3])
    last = runner.model.state_dict()[NAME]
    assert torch.equal(last, weights['train'][-1])  # the validations gave the weights back


def test_an_accumulation_window_enters_the_average_once(tiny_run, tmp_path):
    seen.clear()
    options = {
        'custom_hooks': HOOK_CONFIGS,
        'optim_wrapper.accumulative_counts': 2,
        'train_cfg.max_epochs': 1,
    }
    train_detector(tiny_run.config, TrainOptions(work_dir=str(tmp_path), cfg_options=options))
    weights = seen['train'][1::2]
    assert torch.equal(seen['train'][2], weights[0])  # in the middle of a window
    assert not torch.equal(weights[0], weights[1])
    average = averages(weights)[-1]
    torch.testing.assert_close(seen['val'][0].double(), average, rtol=0, atol=1e-6)


def test_checkpoints_and_the_best_one_hold_the_average(averaged_run):
    runner, work_dir, weights = averaged_run
    average = averages(weights['train'])
    last = read_checkpoint(work_dir / 'epoch_2.pth')
    torch.testing.assert_close(last['state_dict'][NAME].double(), average[7], rtol=0, atol=1e-6)
    assert torch.equal(last['ema_state_dict'][f'module.{NAME}'], weights['train'][7])  # to resume with
    (best,) = work_dir.glob('best_coco_bbox_mAP_epoch_*.pth')
    assert torch.equal(read_checkpoint(best)['state_dict'][NAME], weights['val'][0])
    ema = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    assert torch.equal(ema.state_dict()[NAME], last['state_dict'][NAME])


def test_training_stops_without_improvement(averaged_run):
    runner, work_dir, weights = averaged_run
    assert runner.epoch == 2  # of 4
    assert len(weights['train']) == 8
    assert not (work_dir / 'epoch_3.pth').exists()


def test_the_average_is_published_and_tested(averaged_run, tiny_run, run, tmp_path):
    _, work_dir, weights = averaged_run
    (best,) = work_dir.glob('best_*.pth')
    published = Path(
        run(sys.executable, 'tools/converters/publish_model.py', best, tmp_path / 'a.safetensors').strip()
    )
    assert torch.equal(load_file(published)[NAME], weights['val'][0])
    seen.clear()
    options = EvalOptions(work_dir=str(tmp_path), cfg_options={'custom_hooks': HOOK_CONFIGS})
    for checkpoint in (best, published):
        evaluate_detector(tiny_run.config, checkpoint, options)
    assert all(torch.equal(weight, weights['val'][0]) for weight in seen['test'])
    assert len(seen['test']) == 4


def test_hooks_can_be_set_on_the_command_line(tiny_run, run, tmp_path):
    hooks = "custom_hooks=[dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.1, gamma=2)]"
    run(
        sys.executable, 'tools/train.py', tiny_run.config, '--work-dir', tmp_path,
        '--cfg-options', hooks, 'train_cfg.max_epochs=1', 'default_hooks.checkpoint.save_best=auto',
    )  # fmt: skip
    assert 'ema_state_dict' in read_checkpoint(tmp_path / 'epoch_1.pth')
    assert list(tmp_path.glob('best_*.pth'))
