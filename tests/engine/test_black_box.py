"""Trainings that meet an image on which a module of the model breaks (tests/configs/fragile.py)."""

import re
import sys

import cv2
import pytest
import torch
from mmengine.config import Config

from ddetr.analysis.trainings import Training
from ddetr.engine import build_runner
from ddetr.engine.capsule import read_capsule
from ddetr.engine.config import load_config
from ddetr.engine.hooks import BlackBoxHook
from ddetr.utils.errors import CheckpointError, NonFiniteError
from tests.conftest import ROOT

CONFIG = str(ROOT / 'tests/configs/fragile_shapes.py')
IMAGES = 12
AMP = {'optim_wrapper.type': 'AmpOptimWrapper'}
FP16 = {**AMP, 'optim_wrapper.dtype': 'float16', 'optim_wrapper.loss_scale': {'init_scale': 4.0}}
MODULE = re.escape('backbone.fragile (Fragile)')


@pytest.fixture(scope='module')
def data(draw_shapes):
    """Options for a dataset whose eighth image has a white corner, and its path: iterations 3, 12 and 17."""
    root = draw_shapes(num_train=IMAGES, num_val=1, size=64)
    path = sorted((root / 'train2017').iterdir())[7]
    image = cv2.imread(str(path))
    image[:16, :16] = 255
    cv2.imwrite(str(path), image)
    return {'train_dataloader.dataset.data_root': str(root)}, path


@pytest.fixture(autouse=True)
def _quick_checkpoints(monkeypatch):
    """mmengine formats a config for a second whenever it saves."""
    monkeypatch.setattr(Config, 'pretty_text', '')


def runner_of(work_dir, options, config=CONFIG):
    cfg = load_config(config, options)
    cfg.merge_from_dict({'work_dir': str(work_dir), 'launcher': 'none'})
    return build_runner(cfg, ['train'])


def stopped(work_dir, options, config=CONFIG):
    """Train until the error; the runner and the error's text."""
    runner = runner_of(work_dir, options, config)
    with pytest.raises(NonFiniteError) as error:
        runner.train()
    return runner, str(error.value)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    ('breaks', 'options', 'what'),
    [
        ('output', {}, 'output'),
        ('gradient', {}, 'gradient of its input'),
        ('gradient', {'optim_wrapper.clip_grad': None}, 'gradient of its input'),
        ('output', {**AMP, 'optim_wrapper.dtype': 'bfloat16'}, 'output'),
        ('output', FP16, 'output'),
        (
            'output',
            {'model.backbone.norm_eval': False, 'model.backbone.norm_cfg.requires_grad': True},
            'output',
        ),
        ('gradient', {'model.backbone.with_cp': True, 'model.encoder.num_cp': 1}, 'gradient of its input'),
    ],
)
def test_training_stops_before_the_weights_change(data, tmp_path, breaks, options, what):
    loaders, image = data
    runner, text = stopped(tmp_path, {**loaders, **options, 'model.backbone.breaks': breaks})
    number = int(re.match(r'iteration (\d+) ', text)[1])
    assert number == 3
    assert re.search(rf'First module: {MODULE}, {what}\. .*Images: {re.escape(str(image))}\.', text), text
    before = torch.load(tmp_path / f'iter_{number - 1}.pth', weights_only=False)['state_dict']
    assert same(runner.model.state_dict(), before)
    assert not (tmp_path / f'iter_{number}.pth').exists()
    capsule = read_capsule(tmp_path / f'nonfinite_iter_{number}_rank_0.capsule')
    assert same(capsule.weights, before)
    assert str(image) in [sample.img_path for sample in capsule.step.batch['data_samples']]


@pytest.mark.parametrize('breaks', ['output', 'gradient'])
def test_a_capsule_is_replayed_in_a_new_process(data, tmp_path, run, breaks):
    stopped(tmp_path, {**data[0], 'model.backbone.breaks': breaks})
    (path,) = tmp_path.glob('*.capsule')
    said = run(sys.executable, 'tools/analysis/replay.py', path)
    assert re.search(rf'\nfirst module: {MODULE}, ', said), said
    then_and_now = re.findall(r'^(\S*loss\S*) +(\S+) +(\S+)$', said, re.MULTILINE)[1:]
    assert len(then_and_now) > 6
    assert all(then == now for _, then, now in then_and_now)
    assert all((then == 'nan') == (breaks == 'output') for _, then, _ in then_and_now)


def test_replay_with_a_fixed_model_is_finite(data, tmp_path, run):
    stopped(tmp_path, data[0])
    (path,) = tmp_path.glob('*.capsule')
    content = torch.load(path, weights_only=False)
    content['config']['model']['backbone']['breaks'] = 'nothing'
    torch.save(content, path)
    said = run(sys.executable, 'tools/analysis/replay.py', path, expect=1)
    assert 'the step is finite now' in said


@pytest.mark.parametrize('family', ['detr', 'dino', 'faster-rcnn', 'deformable-detr-refine-twostage'])
def test_every_family_stops_at_the_bad_image(data, tmp_path, family):
    loaders, image = data
    config = ROOT / f'configs/quickstart/{family}_shapes.py'
    pipeline = load_config(CONFIG).train_dataloader.dataset.pipeline
    options = {
        **loaders,
        **FP16,
        'custom_imports': {'imports': ['tests.configs.fragile']},
        'model.backbone': {**load_config(config).model.backbone, 'type': 'FragileResNet', 'breaks': 'output'},
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'train_dataloader.batch_size': 2,
        'train_dataloader.dataset.pipeline': pipeline,
        'val_dataloader': None,
        'val_evaluator': None,
        'val_cfg': None,
    }
    _, text = stopped(tmp_path, options, config)
    assert re.search(rf'First module: {MODULE}, output\. .*Images: {re.escape(str(image))}\.', text), text
    assert len(list(tmp_path.glob('*.capsule'))) == 1


@pytest.mark.parametrize('breaks', ['output', 'gradient'])
def test_two_processes_stop_together_with_accumulation(data, tmp_path, breaks):
    loaders, image = data
    options = {
        **loaders,
        'model.backbone.breaks': breaks,
        'train_dataloader.batch_size': 1,
        'optim_wrapper.accumulative_counts': 2,
        'find_unused_parameters': breaks == 'output',
    }
    training = Training(CONFIG, options, processes=2)
    assert training.run(tmp_path) == [3, 3]
    console = (tmp_path / 'console.txt').read_text()
    assert re.findall(r'^error: iteration (\d+) ', console, re.MULTILINE) == ['3', '3']
    assert console.count(f'Images: {image}.') == 2
    assert re.search(rf'First module: {MODULE}', console)
    assert not (tmp_path / 'iter_3.pth').exists()
    (path,) = tmp_path.glob('*.capsule')  # of the process that has the image
    capsule = read_capsule(path)
    before = torch.load(tmp_path / 'iter_2.pth', weights_only=False)['state_dict']
    assert same(capsule.weights, before)
    assert capsule.step.effective.processes == 2


def test_steps_are_skipped_counted_and_remembered(data, tmp_path):
    loaders, _ = data
    options = {
        **loaders,
        'train_cfg.max_epochs': 3,
        'default_hooks.black_box.max_skipped': 2,
        'optim_wrapper.accumulative_counts': 2,
        'custom_hooks': [{'type': 'EMAHook'}],
    }
    runner, text = stopped(tmp_path, options)
    assert runner.iter == 16
    assert '2 steps were skipped before' in text
    assert runner.message_hub.get_info('skipped_steps') == 2
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert re.search(r'WARNING - iteration \d+ \(epoch 1\).*Skipped: step 1 of at most 2', log)
    assert 'Skipped: step 2 of at most 2' in log
    assert 'skipped_steps: 2' in log
    assert 'nan' not in ''.join(re.findall(r'Epoch\(train\).*', log))
    assert re.findall(r'WARNING - iteration (\d+) ', log) == ['3', '12']
    for before, after in ((2, 4), (10, 12)):  # the window of the bad batch
        one, two = (torch.load(tmp_path / f'iter_{n}.pth', weights_only=False) for n in (before, after))
        assert same(one['optimizer']['state'][0], two['optimizer']['state'][0])
        assert same(one['state_dict'], two['state_dict'])
        assert same(one['ema_state_dict'], two['ema_state_dict'])
    # goes on in the window of the first bad batch, which is run again but not counted again
    resumed = {**options, 'load_from': str(tmp_path / 'iter_3.pth'), 'resume': True}
    _, again = stopped(tmp_path / 'resumed', resumed)
    assert again.split('Replay')[0] == text.split('Replay')[0]


def test_black_box_does_not_change_a_healthy_run(data, tmp_path):
    loaders, _ = data
    found = []
    for name, box in (('on', {}), ('off', {'default_hooks.black_box': None})):
        for kind, options in (('fp32', {'optim_wrapper.accumulative_counts': 2}), ('fp16', FP16)):
            options = {
                **loaders,
                **options,
                **box,
                'model.backbone.breaks': 'nothing',
                'train_cfg.max_epochs': 1,
            }
            runner = runner_of(tmp_path / name / kind, options)
            assert any(isinstance(hook, BlackBoxHook) for hook in runner.hooks) == (name == 'on')
            runner.train()
            found.append(runner.model.state_dict())
            assert not list(tmp_path.rglob('*.capsule'))
    assert same(found[0], found[2])
    assert same(found[1], found[3])


def test_black_box_is_enabled_by_default(data, tmp_path):
    loaders, _ = data
    cfg = load_config(CONFIG, loaders)
    cfg.merge_from_dict({'work_dir': str(tmp_path), 'launcher': 'none'})
    del cfg.default_hooks['black_box']
    runner = build_runner(cfg, ['train'])
    with pytest.raises(NonFiniteError):
        runner.train()


def test_overflow_lowers_the_loss_scale_until_it_counts_as_a_fault(data, tmp_path):
    """A scale of 2 is lowered once for the gradients of the broken image, which are not finite at any scale."""
    loaders, _ = data
    options = {
        **loaders,
        **FP16,
        'model.backbone.breaks': 'gradient',
        'optim_wrapper.loss_scale.init_scale': 2.0,
    }
    runner, text = stopped(tmp_path, options)
    assert runner.iter == 11
    assert 'at a loss scale of 1, overflow 1 in a row' in text
    assert re.search(rf'First module: {MODULE}, gradient of its input', text)
    assert 'skipped_steps' not in runner.message_hub.runtime_info


def test_diverged_weights_and_boxes_are_reported(data, tmp_path):
    loaders, _ = data
    runner = runner_of(tmp_path, {**loaders, 'model.backbone.breaks': 'nothing'})
    with torch.no_grad():
        runner.model.bbox_head.cls_branches[0].weight[:] = torch.nan
    with pytest.raises(NonFiniteError) as error:
        runner.train()
    assert 'Weights that were not finite before this step: bbox_head.cls_branches.0.weight' in str(
        error.value
    )
    assert 'predicted logits' in str(error.value)


def test_invalid_capsule_gives_one_clear_error(tmp_path):
    (tmp_path / 'x.capsule').write_bytes(b'no capsule')
    with pytest.raises(CheckpointError, match=r'x\.capsule cannot be read'):
        read_capsule(tmp_path / 'x.capsule')
    with pytest.raises(CheckpointError, match='does not exist'):
        read_capsule(tmp_path / 'y.capsule')
