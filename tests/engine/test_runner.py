import logging
import shutil

import pytest
import torch
from mmengine.model import BaseModel

from ddetr.apis import TrainOptions, train_detector
from ddetr.engine import DetRunner
from ddetr.engine.console import keep_details_out
from ddetr.utils import CheckpointError
from ddetr.visualization.curves import read_scalars


class Line(BaseModel):
    """The least that a Runner trains: the mean of a linear map."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)
        self.compiled = []

    def forward(self, inputs, mode='tensor'):
        self.compiled.append(torch.compiler.is_compiling())
        return {'loss': self.linear(torch.stack(inputs)).mean()}


@pytest.fixture
def line_runner(tmp_path):
    def build(**options) -> DetRunner:
        data = [{'inputs': torch.full((2,), float(i))} for i in range(4)]
        return DetRunner(
            Line(),
            str(tmp_path),
            train_dataloader={'dataset': data, 'sampler': {'type': 'DefaultSampler'}, 'batch_size': 2},
            train_cfg={'by_epoch': True, 'max_epochs': 1},
            optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.1}},
            default_scope='ddetr',
            experiment_name=tmp_path.name,
            **options,
        )

    return build


def test_a_failing_save_leaves_the_earlier_checkpoint(line_runner, tmp_path, monkeypatch):
    runner = line_runner()
    runner.train()
    earlier = (tmp_path / 'epoch_1.pth').read_bytes()

    def fail(content, file):
        file.write(b'half')
        raise OSError('no space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(CheckpointError, match=r'epoch_1\.pth cannot be written: no space.*Earlier .* intact'):
        runner.save_checkpoint(str(tmp_path), 'epoch_1.pth')
    assert (tmp_path / 'epoch_1.pth').read_bytes() == earlier
    assert not list(tmp_path.glob('*unfinished*')) + list(tmp_path.glob('.*unfinished*'))


def test_only_the_forward_is_compiled(line_runner):
    """mmengine compiles `train_step`, in which dynamo stumbles over the optimizer wrapper."""
    runner = line_runner(cfg={'compile': {'backend': 'eager'}})
    before = runner.model.linear.bias.item()
    runner.train()
    assert any(runner.model.compiled)
    # two steps of the mean's gradient, which is 1 for the bias
    assert runner.model.linear.bias.item() == pytest.approx(before - 2 * 0.1)


def test_details_stay_out_of_the_terminal():
    shown = []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    keep_details_out(handler)
    for level, message in [
        (logging.INFO, 'Config:\nmodel = dict()'),
        (logging.WARNING, 'backbone.bn1.weight is skipped since its requires_grad=False'),
        (logging.INFO, 'Epoch(train) [1][1/4] eta: 0:00:05'),
        (logging.ERROR, 'Config: broken'),
    ]:
        handler.handle(logging.LogRecord('mmengine', level, '', 0, message, (), None))
    assert shown == ['Epoch(train) [1][1/4] eta: 0:00:05', 'Config: broken']


def test_resume_from_weights_raises_and_tells_what_to_do(tiny_run, tmp_path):
    content = torch.load(tiny_run.checkpoint, weights_only=False)
    torch.save({'state_dict': content['state_dict'], 'meta': content['meta']}, tmp_path / 'weights.pth')
    options = TrainOptions(work_dir=str(tmp_path), resume=str(tmp_path / 'weights.pth'))
    with pytest.raises(CheckpointError, match=r'cannot be resumed.*load_from=.*weights\.pth'):
        train_detector(tiny_run.config, options)


def test_load_from_reads_only_weights_and_logs_it(tiny_run, tmp_path):
    options = TrainOptions(
        work_dir=str(tmp_path),
        cfg_options={
            'load_from': str(tiny_run.checkpoint),
            'optim_wrapper.optimizer.lr': 0.0,
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 9,
        },
    )
    runner = train_detector(tiny_run.config, options)
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert f'from iteration 8, use --resume {tiny_run.checkpoint}' in log
    assert 'Epoch(train) [1][1/4]' in log
    loaded = torch.load(tiny_run.checkpoint, weights_only=False)['state_dict']
    for name, value in runner.model.state_dict().items():  # a learning rate of 0 left them as they were
        assert torch.equal(value, loaded[name]), name


def test_load_from_skips_loading_the_pretrained_backbone(tiny_run, tmp_path):
    """Without network a run that takes all weights from a file must not ask for others first."""
    options = {
        'load_from': str(tiny_run.checkpoint),
        'model.backbone.init_cfg': {
            '_delete_': True,
            'type': 'Pretrained',
            'checkpoint': str(tmp_path / 'not_there.pth'),
        },
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 9,
    }
    train_detector(tiny_run.config, TrainOptions(work_dir=str(tmp_path / 'a'), cfg_options=options))
    assert (
        read_scalars(tmp_path / 'a')['loss'][3][0] == 4
    )  # in this run's folder, though others ran in this process
    with pytest.raises(CheckpointError, match='not_there'):
        train_detector(
            tiny_run.config, TrainOptions(str(tmp_path / 'b'), allow_partial=True, cfg_options=options)
        )


def test_resume_into_another_model_raises(tiny_run, tmp_path):
    options = TrainOptions(
        work_dir=str(tmp_path),
        resume=str(tiny_run.checkpoint),
        cfg_options={'model.num_queries': 13},
    )
    with pytest.raises(CheckpointError, match=r'does not match the model of this config.*query_embedding'):
        train_detector(tiny_run.config, options)


def test_copied_work_dir_resumes_from_its_own_checkpoint(tiny_run, tmp_path):
    """`last_checkpoint` and the best checkpoint's name hold absolute paths, of the folder copied from."""
    copy = tmp_path / 'copy'
    shutil.copytree(tiny_run.work_dir, copy)
    content = torch.load(copy / 'epoch_2.pth', weights_only=False)
    content['message_hub']['runtime_info']['best_ckpt'] = str(tiny_run.work_dir / 'best.pth')
    content['message_hub']['resumed_keys']['best_ckpt'] = True
    torch.save(content, copy / 'epoch_2.pth')
    runner = train_detector(tiny_run.config, TrainOptions(work_dir=str(copy), resume='auto'))
    assert runner.message_hub.get_info('best_ckpt') == str(copy / 'best.pth')
    assert runner.message_hub.get_info('last_ckpt') == str(copy / 'epoch_2.pth')
    log = max(copy.glob('*/*.log')).read_text()
    assert 'training is already complete' in log


def test_the_learning_rate_is_scaled_by_the_effective_batch(tiny_run, tmp_path):
    """2 images a batch, 4 accumulated: a fourth of the rate that is meant for 32."""
    options = {
        'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 9, 'optim_wrapper.accumulative_counts': 4,
        'optim_wrapper.optimizer.lr': 4e-4, 'optim_wrapper.paramwise_cfg': None, 'param_scheduler': [],
    }  # fmt: skip
    runner = train_detector(
        tiny_run.config, TrainOptions(str(tmp_path), auto_scale_lr=True, cfg_options=options)
    )
    assert runner.optim_wrapper.get_lr()['lr'] == [pytest.approx(1e-4)]


class Map(BaseModel):
    """A convolution that is trained to give nothing."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3)

    def forward(self, inputs, mode='tensor'):
        return {'loss': self.conv(torch.stack(inputs)).square().mean()}


def test_channels_last_resumes_bit_for_bit(tmp_path):
    def train(epochs, **options):
        torch.manual_seed(0)
        runner = DetRunner(
            Map(),
            str(tmp_path),
            train_dataloader={
                'dataset': [{'inputs': torch.full((2, 8, 8), float(i))} for i in range(4)],
                'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                'batch_size': 2,
            },
            train_cfg={'by_epoch': True, 'max_epochs': epochs},
            optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.1}},
            default_scope='ddetr',
            experiment_name=f'{tmp_path.name}_{epochs}_{len(options)}',
            cfg={'channels_last': True},
            **options,
        )
        runner.train()
        return runner.model.conv.weight

    whole = train(2)
    train(1)
    resumed = train(2, load_from=str(tmp_path / 'epoch_1.pth'), resume=True)
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert resumed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(whole, resumed)
