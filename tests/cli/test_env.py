import getpass
import json
import re
from importlib.metadata import version
from pathlib import Path

import ddetr_ops
import torch

from ddetr import __version__
from ddetr.cli import main
from ddetr.utils import environment
from ddetr.utils.environment import clean, collect


def test_env_prints_the_installed_versions(capsys):
    main(['env', '--json'])
    facts = json.loads(capsys.readouterr().out)
    packages = facts['packages']
    assert packages['ddetr'] == __version__
    assert packages['ddetr_ops'] == ddetr_ops.__version__
    assert packages['torch'] == torch.__version__
    assert packages['pycocotools'] == version('pycocotools')  # a package without __version__
    assert facts['PyTorch']['CPU capability'] == torch.backends.cpu.get_cpu_capability()
    assert facts['op']['CPU library'] in ('compiled', clean(str(ddetr_ops._library.CPU_PROBLEM)))
    main(['env'])
    text = capsys.readouterr().out
    assert f'  torch: {torch.__version__}\n' in text


def test_env_reveals_no_paths_or_user_names(monkeypatch, tmp_path):
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:/secret/place')
    monkeypatch.setenv('USER', 'marguerite')
    monkeypatch.setenv('OMP_PLACES', 'marguerite in ~/cores and C:\\Users\\marguerite')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'active')
    monkeypatch.setenv('SECRET_TOKEN', 'abc')
    facts = collect()
    assert facts['environment']['OMP_WAIT_POLICY'] == 'active'
    assert facts['environment']['PYTHONPATH'] == '<path>:<path>'
    assert 'SECRET_TOKEN' not in facts['environment']
    text = json.dumps(facts)
    assert 'marguerite' not in text
    assert 'secret' not in text
    assert str(Path.home()) not in text or Path.home() == Path('/')
    assert not re.search(r'(?<!<)/(usr|home|tmp|root|work)\b', text)
    assert getpass.getuser() == 'marguerite' or getpass.getuser() not in text


def test_env_reports_packages_that_fail_to_import(monkeypatch):
    real = environment.importlib.import_module

    def broken(name):
        if name in ('cv2', 'ddetr_ops._library'):
            raise OSError('libGL.so.1: cannot open shared object file\nin /usr/lib')
        return real(name)

    monkeypatch.setattr(environment.importlib, 'import_module', broken)
    facts = collect()
    assert facts['packages']['cv2'] == (
        'does not import: OSError: libGL.so.1: cannot open shared object file'
    )
    assert facts['op'] == {'ddetr_ops': facts['packages']['cv2']}
    assert facts['packages']['torch'] == torch.__version__
