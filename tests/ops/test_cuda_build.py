"""What nvcc makes of the kernels, and what the library asks of PyTorch. Needs no GPU."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location('build_report', ROOT / 'ops' / 'build_report.py')
build_report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_report)

CXX = os.environ.get('CXX', 'c++')


@pytest.mark.skipif(build_report.find_nvcc() is None, reason='there is no nvcc')
@pytest.mark.parametrize('arch', ['80', '90'])
@pytest.mark.parametrize('element_type', ['float', 'bfloat16'])
def test_no_kernel_spills_registers(element_type, arch):
    reports = build_report.compile_and_read(element_type, arch)
    known = [report for report in reports if 'D=32' in report.shape]
    assert {report.kernel for report in known} == {
        'forward',
        'fused forward',
        'backward (direct)',
        'backward (merged)',
        'fused backward (direct)',
        'fused backward (merged)',
    }
    assert [report for report in reports if report.spilled_bytes] == []
    # 65,536 registers are a multiprocessor's: at least two blocks of 256 threads have to fit.
    assert max(report.registers for report in reports) <= 128


def _symbols(*nm_arguments: str) -> set[str]:
    lines = subprocess.run(
        ['nm', *nm_arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {line.split()[-1].partition('@')[0] for line in lines if line.strip()}


@pytest.mark.skipif(not (shutil.which(CXX) and shutil.which('nm')), reason='there is no C++ compiler with nm')
def test_everything_it_asks_of_pytorch_is_in_the_cpu_half(tmp_path):
    """So that `_C_cuda` loads under a PyTorch without CUDA: the CUDA half is looked up at the first call only."""
    torch_folder = Path(torch.__file__).parent
    target = str(tmp_path / 'bindings.o')
    command = [CXX, '-std=c++20', '-fPIC', '-DUSE_CUDA', '-DTORCH_TARGET_VERSION=0x020A000000000000']
    command += [
        '-isystem',
        str(torch_folder / 'include'),
        '-c',
        str(ROOT / 'ops/csrc/cuda/bindings.cpp'),
        '-o',
        target,
    ]
    subprocess.run(command, check=True)
    wanted = {
        name for name in _symbols('--undefined-only', target) if name.startswith(('aoti_torch_', 'torch_'))
    }
    assert 'torch_library_impl' in wanted
    assert wanted <= _symbols('-D', '--defined-only', str(torch_folder / 'lib' / 'libtorch_cpu.so'))
