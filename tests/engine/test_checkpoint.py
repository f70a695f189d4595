import argparse
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from safetensors.torch import save_file

from ddetr.engine import read_checkpoint
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


def test_reads_files_written_with_numpy_1(tmp_path):
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
def test_malicious_file_is_rejected_without_execution(tmp_path, name):
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
