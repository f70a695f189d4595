"""What a training shows on the terminal, and what it leaves in the log file and in experiment trackers."""

import glob
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.runner import LogProcessor as EngineLogProcessor

from ddetr.apis import TrainOptions, train_detector
from ddetr.engine.log_processor import LogProcessor

ROOT = Path(__file__).resolve().parents[2]


def train(config: Path, work_dir: Path, *options: str) -> str:
    """One epoch by the command; its terminal output."""
    run = subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir), '--cfg-options',
         'train_cfg.max_epochs=1', 'train_cfg.val_interval=9', *options],
        cwd=work_dir, capture_output=True, text=True, env={**os.environ, 'WANDB_MODE': 'offline'},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout + run.stderr


def test_the_terminal_shows_one_short_line_and_the_log_file_every_term(tiny_run, tmp_path):
    shown = train(tiny_run.config, tmp_path)
    lines = [line for line in shown.splitlines() if 'Epoch(train)' in line]
    assert len(lines) == 4
    pattern = r'Epoch\(train\) \[1\]\[\d/4\]  loss \d+\.\d{4}  lr 2\.0e-04  \d+\.\d images/s  \d+ MiB  ETA 0:00:\d\d$'
    assert all(re.search(pattern, line) for line in lines), lines
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert all(
        term in log for term in ('d0.loss_cls: ', 'loss_bbox: ', 'loss_iou: ', 'data_time: ', 'memory: ')
    )


@pytest.mark.parametrize(
    'position', ['Epoch(train) [1][ 50/103]', 'Epoch(train)  [9][100/103]', 'Iter(train) [ 50/90000]']
)
def test_the_short_line_keeps_its_position(position, monkeypatch):
    """mmengine pads the epoch from 10 epochs on."""
    monkeypatch.setattr(
        EngineLogProcessor,
        'get_log_after_iter',
        lambda *_: ({'loss': 2.5}, f'{position}  loss: 2.5  loss_iou: 1'),
    )
    runner = SimpleNamespace(
        train_dataloader=SimpleNamespace(batch_sampler=None),
        message_hub=SimpleNamespace(runtime_info={'eta': 90.0}),
    )
    _, line = LogProcessor().get_log_after_iter(runner, 49, 'train')
    assert line.startswith(f'{position}  loss: 2.5  loss_iou: 1')
    assert re.fullmatch(rf'{re.escape(position)}  loss 2\.5000  (\d+ MiB  )?ETA 0:01:30', line.short)


def tensorboard_scalars(work_dir: Path) -> set[str]:
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    (folder,) = work_dir.glob('*/vis_data')
    accumulator = events.EventAccumulator(str(folder))
    accumulator.Reload()
    return set(accumulator.Tags()['scalars'])


def wandb_scalars(work_dir: Path) -> set[str]:
    datastore = pytest.importorskip('wandb.sdk.internal.datastore')
    from wandb.proto import wandb_internal_pb2

    (path,) = glob.glob(f'{work_dir}/*/vis_data/wandb/offline-run-*/*.wandb')
    store, keys = datastore.DataStore(), set()
    store.open_for_scan(path)
    while data := store.scan_data():
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        keys |= {item.key or '/'.join(item.nested_key) for item in record.history.item}
    return keys


def mlflow_scalars(work_dir: Path) -> set[str]:
    mlflow = pytest.importorskip('mlflow')
    client = mlflow.MlflowClient(tracking_uri=f'sqlite:///{work_dir}/mlflow.db')
    (experiment,) = client.search_experiments(filter_string="name = 'ddetr'")
    (run,) = client.search_runs([experiment.experiment_id])
    return set(run.data.metrics)


@pytest.mark.parametrize(
    ('tracker', 'module', 'read'),
    [
        ('Tensorboard', 'tensorboard', tensorboard_scalars),
        ('Wandb', 'wandb', wandb_scalars),
        ('MLflow', 'mlflow', mlflow_scalars),
    ],
)
def test_experiment_tracker_receives_every_loss_term(tracker, module, read, tiny_run, tmp_path):
    pytest.importorskip(module)
    options = [f'visualizer.vis_backends.0.type={tracker}VisBackend']
    if tracker == 'MLflow':
        options += [f'visualizer.vis_backends.0.tracking_uri=sqlite:///{tmp_path}/mlflow.db',
                    'visualizer.vis_backends.0.exp_name=ddetr']  # fmt: skip
    train(tiny_run.config, tmp_path, *options)
    assert {'loss', 'lr', 'd0.loss_cls', 'loss_bbox', 'loss_iou', 'memory', 'images_per_second'} <= read(
        tmp_path
    )


def test_runs_started_in_the_same_second_have_separate_logs(tiny_run, tmp_path, monkeypatch):
    now = time.time()
    monkeypatch.setattr('mmengine.runner.runner.time.time', lambda: now)
    for name in ('a', 'b'):
        train_detector(
            tiny_run.config, TrainOptions(str(tmp_path / name), cfg_options={'train_cfg.max_epochs': 1})
        )
    for name in ('a', 'b'):
        log = next((tmp_path / name).glob('*/*.log')).read_text()
        assert f'Checkpoints will be saved to {tmp_path / name}.' in log
