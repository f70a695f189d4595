"""Files that want to run code, or that are no weights at all, through every way in which a weight file gets here."""

import os
import re
import runpy
import sys

import cv2
import mmengine.runner
import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader

from ddetr.apis import init_detector
from ddetr.models.backbones import ResNet
from ddetr.utils import CheckpointError
from tests.conftest import ROOT
from tests.engine import malicious

COMMANDS = {
    'train load_from': 'tools/train.py {config} --work-dir {tmp} --cfg-options load_from={file} train_cfg.max_epochs=1',
    'train --resume': 'tools/train.py {config} --work-dir {tmp} --resume {file}',
    'test': 'tools/test.py {config} {file} --work-dir {tmp}',
    'image demo': 'demo/image_demo.py {image} {config} {file} --out-dir {tmp}',
    'video demo': 'demo/video_demo.py {video} {config} {file} --out {tmp}/out.avi',
    'identify': 'tools/converters/identify.py {file}',
    'convert': 'tools/converters/convert_weights.py {file} {tmp}/converted.pth --to ddetr',
    'convert with config': 'tools/converters/convert_weights.py {file} {tmp}/c.pth --to original --config {config}',
    'publish': 'tools/converters/publish_model.py {file} {tmp}/published.safetensors',
}
FUNCTIONS = {
    'init_detector': lambda config, path: init_detector(config, path),
    'pretrained backbone': lambda config, path: ResNet(
        18, base_channels=8, init_cfg={'type': 'Pretrained', 'checkpoint': str(path)}
    ).init_weights(),
    "mmengine's loader": lambda config, path: CheckpointLoader.load_checkpoint(str(path)),
    "mmengine's load_checkpoint": lambda config, path: mmengine.runner.load_checkpoint(
        torch.nn.Linear(1, 1), str(path)
    ),
}


@pytest.fixture
def call(tiny_run, tmp_path, monkeypatch, capsys):
    """Run one of COMMANDS on a weight file in this process; its exit status and what it wrote to stderr."""
    image = tiny_run.data_root / 'val2017' / '000000000001.jpg'
    video = tmp_path / 'video.avi'
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*'MJPG'), 5, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    places = {'image': image, 'video': video, 'tmp': tmp_path / 'out', **tiny_run._asdict()}

    def run(name, path):
        script, *arguments = COMMANDS[name].split()
        given = [argument.format(file=path, **places) for argument in arguments]
        monkeypatch.setattr(sys, 'argv', [script, *given])
        status = 0
        try:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        except SystemExit as error:
            status = error.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize('name', malicious.FILES)
@pytest.mark.parametrize('command', COMMANDS)
def test_no_command_runs_code(call, tmp_path, command, name):
    path, expected = malicious.make(name, tmp_path, tmp_path / 'marker')
    status, printed = call(command, path)
    assert status == 2
    (sentence,) = re.findall('^error: .*', printed, re.MULTILINE)
    assert str(path) in sentence
    assert expected in sentence
    assert 'Traceback' not in printed
    assert not (tmp_path / 'marker').exists()
    assert not [*tmp_path.rglob('c*.pth'), *tmp_path.rglob('*published*')]


@pytest.mark.parametrize('name', malicious.FILES)
@pytest.mark.parametrize('function', FUNCTIONS)
def test_no_function_runs_code(tiny_run, tmp_path, function, name):
    path, expected = malicious.make(name, tmp_path, tmp_path / 'marker')
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        FUNCTIONS[function](tiny_run.config, path)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('name', [name for name, file in malicious.FILES.items() if file[1] == '.pth'])
def test_no_folder_from_hugging_face_runs_code(tiny_run, tmp_path, name):
    path, expected = malicious.make(name, tmp_path, tmp_path / 'marker')
    path.rename(tmp_path / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        init_detector(tiny_run.config, tmp_path)
    assert not (tmp_path / 'marker').exists()


@pytest.mark.parametrize('command', COMMANDS)
def test_no_command_runs_the_config_in_a_checkpoint(call, tiny_run, tmp_path, command):
    """mmengine keeps a config's text in `meta` and runs it as Python when it resumes."""
    content = torch.load(tiny_run.checkpoint, weights_only=False)
    content['meta']['config'] = f'open({os.fspath(tmp_path / "marker")!r}, "w").close()'
    torch.save(content, tmp_path / 'evil.pth')
    status, printed = call(command, tmp_path / 'evil.pth')
    assert status == 0, printed
    assert not (tmp_path / 'marker').exists()
