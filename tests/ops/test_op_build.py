import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OPS = Path(__file__).resolve().parents[2] / 'ops'
if not (OPS / 'op_build.py').exists():
    pytest.skip('the sources are not here', allow_module_level=True)
SPEC = importlib.util.spec_from_file_location('op_build', OPS / 'op_build.py')
op_build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(op_build)


@pytest.mark.parametrize(
    ('compiler', 'reason'),
    [
        ('no-such-compiler', "There is no C++ compiler 'no-such-compiler'"),
        ('false', 'false failed with status 1'),
    ],
)
def test_without_a_compiler_the_build_succeeds_and_says_what_is_left_out(compiler, reason, tmp_path):
    for name in ('setup.py', 'op_build.py'):
        shutil.copy(OPS / name, tmp_path)
    shutil.copytree(OPS / 'csrc', tmp_path / 'csrc')
    for package in ('ddetr_ops', 'ddetr_ops/compat'):
        (tmp_path / package).mkdir()
        (tmp_path / package / '__init__.py').touch()
    stale = tmp_path / 'ddetr_ops' / '_C.abi3.so'
    stale.write_bytes(b'of an earlier build')
    run = subprocess.run(
        [sys.executable, 'setup.py', 'build_ext', '--inplace'],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'CXX': compiler, 'FORCE_CUDA': '0'},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert 'ddetr_ops._C was not built, ddetr_ops falls back to plain PyTorch' in run.stdout + run.stderr
    assert reason in run.stdout + run.stderr
    assert not stale.exists()


def test_cuda_is_built_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv('NVCC', '/usr/bin/true')
    monkeypatch.setenv('FORCE_CUDA', '1')
    assert op_build.wants_cuda()
    monkeypatch.setenv('FORCE_CUDA', '0')
    assert not op_build.wants_cuda()
    monkeypatch.setenv('FORCE_CUDA', '1')
    monkeypatch.delenv('NVCC')
    monkeypatch.setenv('PATH', '/nowhere')
    assert not op_build.wants_cuda()


def test_architectures_become_flags():
    assert op_build.arch_flags('8.0;9.0a 10.0+PTX') == [
        '-gencode=arch=compute_80,code=sm_80',
        '-gencode=arch=compute_90a,code=sm_90a',
        '-gencode=arch=compute_100,code=sm_100',
        '-gencode=arch=compute_100,code=compute_100',
    ]
    with pytest.raises(ValueError, match=r"TORCH_CUDA_ARCH_LIST: 'Ampere' is not like 8\.0 or 9\.0\+PTX"):
        op_build.arch_flags('Ampere')
