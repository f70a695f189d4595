import argparse
import pickle

import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, init_detector, train_detector
from ddetr.engine import read_checkpoint
from ddetr.models.backbones import ResNet
from ddetr.utils import CheckpointError
from tests.engine import malicious


def test_reads_what_mmengine_writes(tmp_path):
    history = HistoryBuffer([1.0, 2.5], [1, 3])
    content = {
        'meta': {'epoch': 3, 'iter': np.int64(7), 'args': argparse.Namespace(lr=2e-4)},
        'message_hub': {'log_scalars': {'train/loss': history}, 'best': np.float32(0.5)},
        'state_dict': {'weight': torch.randn(3, 2)},
    }
    torch.save(content, tmp_path / 'a.pth')
    found = read_checkpoint(tmp_path / 'a.pth')
    trusted = torch.load(tmp_path / 'a.pth', weights_only=False)
    assert torch.equal(found['state_dict']['weight'], trusted['state_dict']['weight'])
    assert found['meta'] == trusted['meta']
    loaded = found['message_hub']['log_scalars']['train/loss']
    assert [loaded.current(), loaded.min(), loaded.max()] == [2.5, 1.0, 2.5]
    assert loaded.statistics('mean') == history.mean()


def test_reads_files_that_numpy_1_named(tmp_path):
    """numpy 1 called its module numpy.core; such files stay readable."""
    torch.save({'value': np.float64(1.5)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    old = (tmp_path / 'a.pth').read_bytes().replace(b'numpy._core.multiarray', b'numpy.core.multiarray')
    (tmp_path / 'b.pth').write_bytes(old)
    assert read_checkpoint(tmp_path / 'b.pth') == {'value': 1.5}


def test_reads_safetensors_with_its_metadata(tmp_path):
    weight = torch.randn(4, 2, dtype=torch.float64)
    save_file({'weight': weight}, tmp_path / 'a.safetensors', {'classes': '["cat"]'})
    found = read_checkpoint(tmp_path / 'a.safetensors')
    assert torch.equal(found['state_dict']['weight'], weight)
    assert found['meta'] == {'classes': '["cat"]'}


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r'nowhere\.pth does not exist'):
        read_checkpoint(tmp_path / 'nowhere.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize('name', malicious.FILES)
def test_bad_file_is_refused_unexecuted(tmp_path, name):
    path, expected = malicious.make(name, tmp_path, tmp_path / 'marker')
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'marker').exists()


def test_the_malicious_files_work(tmp_path):
    """Unpickled without care they do what they are for; else the test above would show nothing."""
    for number, name in enumerate(['os.system', 'os.system in the old format', 'eval']):
        marker = tmp_path / str(number)
        torch.load(malicious.make(name, tmp_path, marker)[0], weights_only=False)
        assert marker.exists(), name
    marker = tmp_path / 'plain'
    pickle.loads(malicious.make('os.system in a plain pickle', tmp_path, marker)[0].read_bytes())
    assert marker.exists()


def _entry_points(config, work_dir):
    def train(path, **options):
        train_detector(config, TrainOptions(work_dir=str(work_dir), **options))

    return {
        'test': lambda path: evaluate_detector(config, path, EvalOptions(work_dir=str(work_dir))),
        'resume': lambda path: train(path, resume=str(path)),
        'load_from': lambda path: train(path, cfg_options={'load_from': str(path)}),
        'init_detector': lambda path: init_detector(config, path),
        'pretrained backbone': lambda path: ResNet(
            18, base_channels=8, init_cfg={'type': 'Pretrained', 'checkpoint': str(path)}
        ).init_weights(),
        "mmengine's loader": lambda path: CheckpointLoader.load_checkpoint(str(path)),
        "mmengine's load_checkpoint": lambda path: mmengine.runner.load_checkpoint(
            torch.nn.Linear(1, 1), str(path)
        ),
    }


@pytest.mark.parametrize('entry', _entry_points(None, None))
@pytest.mark.parametrize('name', ['os.system', 'getattr'])
def test_no_entry_point_runs_code(tiny_run, tmp_path, entry, name):
    path, expected = malicious.make(name, tmp_path, tmp_path / 'marker')
    with pytest.raises(CheckpointError, match=expected):
        _entry_points(tiny_run.config, tmp_path / 'work')[entry](path)
    assert not (tmp_path / 'marker').exists()


def test_resume_does_not_run_the_config_in_a_checkpoint(tiny_run, tmp_path):
    content = torch.load(tiny_run.checkpoint, weights_only=False)
    content['meta']['config'] = f'open({str(tmp_path / "marker")!r}, "w").close()'
    torch.save(content, tmp_path / 'evil.pth')
    runner = train_detector(
        tiny_run.config, TrainOptions(work_dir=str(tmp_path / 'work'), resume=str(tmp_path / 'evil.pth'))
    )
    assert runner.iter == 8
    assert not (tmp_path / 'marker').exists()
