"""Resumed trainings; tools/analysis/resume_check.py runs more of them."""

import re
from pathlib import Path

import pytest
import torch

from ddetr.analysis import batch_check
from ddetr.analysis.resume_check import ACCUMULATION, CASES, check_resume, data_options
from ddetr.analysis.trainings import Training, difference, differences
from ddetr.apis import TrainOptions, train_detector
from ddetr.utils import CheckpointError

CONFIG = str(Path(__file__).parents[1] / 'configs' / 'tiny_shapes.py')
CHEAP = ('mid-epoch', 'EMA, in a validation', 'by iterations, over epochs', '2 processes, all of it')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return data_options(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize('case', [case for case in CASES if case.name in CHEAP], ids=lambda case: case.name)
def test_resumed_training_equals_uninterrupted_training(data, case):
    found = check_resume(CONFIG, data, case)
    assert set(found.interrupted) == {75}
    assert set(found.resumed) == {0}
    assert set(found.apart.values()) == {0.0}, found.apart


def test_differences_are_found(tmp_path):
    buffers = {'log_scalars': {}, 'runtime_info': {'best_score': 0.5, 'best_ckpt': '/a/best.pth'}}
    content = {
        'state_dict': {'weight': torch.tensor([1.0, 2.0])},
        'optimizer': {'state': {0: {'step': 3}}},
        'param_schedulers': [{'last_step': 3}],
        'message_hub': buffers,
    }
    torch.save(content, tmp_path / 'a.pth')
    best = {**buffers, 'runtime_info': {'best_score': 0.75, 'best_ckpt': '/b/best.pth'}}
    other = {**content, 'state_dict': {'weight': torch.tensor([1.0, 2.5])}, 'message_hub': best}
    torch.save({**other, 'ema_state_dict': {}}, tmp_path / 'b.pth')
    assert differences(tmp_path / 'a.pth', tmp_path / 'b.pth') == {
        'weights': 0.5, 'average': float('inf'), 'optimizer': 0.0, 'schedule': 0.0, 'best': 0.25, 'logs': 0.0,
    }  # fmt: skip
    nan = torch.tensor([float('nan'), 1.0])
    assert difference({'a': [nan]}, {'a': [nan.clone()]}) == 0
    assert difference([nan], [torch.zeros(2)]) == float('inf')
    assert difference((1, 'x'), (1, 'y')) == float('inf')


def test_resume_with_another_number_of_processes_continues_at_the_right_image(data, tmp_path):
    """One process with 2 images for 4 iterations and the window before, then two processes with 1 each, or with 2."""
    one = Training(CONFIG, {**data, **ACCUMULATION, 'default_hooks.checkpoint.save_best': None})
    assert one.run(tmp_path, custom_hooks=[{'type': 'AskToEnd', 'iteration': 9}]) == [75]
    meta = torch.load(tmp_path / 'interrupted.pth', weights_only=False)['meta']
    # 6 iterations an epoch; the window of 4 began with the second epoch and is through
    assert (meta['epoch'], meta['iter'], meta['position']['skip'], meta['position']['replay']) == (
        1,
        10,
        4,
        0,
    )
    two = one._replace(processes=2)
    assert two.run(tmp_path, resume='auto') == [0, 0]
    log = Path(tmp_path, 'console.txt').read_text()
    assert (
        'saved by 1 processes with 2 images per batch and 4 accumulated batches, resumed at image 8 of epoch 2'
        in log
    )
    assert (
        'may differ from an uninterrupted run in the composition of batches and random numbers inside' in log
    )
    # 3 iterations of 4 images an epoch; 8 images are done
    assert re.findall(r'Epoch\(train\) \[2\]\[(\d)/3\]', log) == ['3']
    assert torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['meta']['iter'] == 6


def test_checkpoint_of_mmengine_resumes_mid_epoch(data, tmp_path):
    """Without the position that our checkpoints have: at the right batch all the same."""
    training = Training(CONFIG, data)
    assert training.run(tmp_path, custom_hooks=[{'type': 'AskToEnd', 'iteration': 8}]) == [75]
    content = torch.load(tmp_path / 'interrupted.pth', weights_only=False)
    del content['meta']['position']
    torch.save(content, tmp_path / 'interrupted.pth')
    assert training.run(tmp_path, resume='auto') == [0]
    assert training.run(tmp_path / 'whole') == [0]
    apart = differences(tmp_path / 'epoch_2.pth', tmp_path / 'whole' / 'epoch_2.pth')
    assert apart['weights'] == apart['optimizer'] == 0


def test_missing_checkpoint_raises(tiny_run, tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_3.pth')
    options = TrainOptions(str(tmp_path), 'auto')
    with pytest.raises(
        CheckpointError, match=r'last_checkpoint names /elsewhere/epoch_3\.pth, .*: no other one is available'
    ):
        train_detector(tiny_run.config, options)
    for name in ('epoch_2.pth', 'best_coco.pth', '.epoch_3.pth.1.unfinished'):
        (tmp_path / name).write_bytes(b'')
    with pytest.raises(CheckpointError, match=r'newest one available, --resume \S+/epoch_2\.pth'):
        train_detector(tiny_run.config, options)


def test_accumulation_on_two_processes_equals_one_large_batch(tmp_path):
    """A third of the images is empty, so that some parts have no object; windows of an epoch are 4 + 2 images."""
    data = batch_check.data_options(tmp_path, 6)
    whole = batch_check.train_parts(CONFIG, data, batch_check.WHOLE, 2, tmp_path / 'whole')
    layout = batch_check.Layout(processes=2, accumulated=2, images=1)
    parts = batch_check.train_parts(CONFIG, data, layout, 2, tmp_path / 'parts')
    of_weights, of_way = batch_check.apart(parts, whole)
    assert 0 < of_weights < of_way < 1e-10
    assert torch.load(parts, weights_only=False)['meta']['iter'] == 6
    assert torch.load(whole, weights_only=False)['meta']['iter'] == 4
