"""Compiled kernels and the library's symbols; no GPU needed."""

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


needs_nvcc = pytest.mark.skipif(build_report.find_nvcc() is None, reason='there is no nvcc')


@needs_nvcc
@pytest.mark.parametrize('arch', ['80', '90'])
@pytest.mark.parametrize('element_type', ['float', 'bfloat16'])
def test_no_kernel_spills_registers(element_type, arch):
    reports = build_report.compile_and_read(element_type, arch)
    for channels in (16, 32, 64, 128):
        assert {r.kernel.name for r in reports if r.kernel.shape == f'D = {channels}'} == {
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


SASS = """
\t.section\t.text._Z7examplev,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R0, R0, 0x1, RZ ;
.L_x_2:
        /*0020*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0050*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0060*/                   FFMA R4, R4, R4, R8 ;
        /*0070*/               @P0 BRA `(.L_x_2) ;
        /*0080*/                   FFMA R4, R4, R4, R8 ;
        /*0090*/               @P1 BRA `(.L_x_1) ;
        /*00a0*/                   EXIT ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3);
        /*00c0*/                   NOP;
"""


def test_instructions_are_counted_without_padding_and_loops_by_their_labels(tmp_path):
    nvdisasm = tmp_path / 'nvdisasm'
    nvdisasm.write_text(f"#!/bin/sh\ncat <<'EOF'\n{SASS}EOF\n")
    nvdisasm.chmod(0o755)
    # The inner loop only: from L_x_2 to its branch.
    assert build_report.read_sass(tmp_path / 'any.cubin', str(nvdisasm)) == {'_Z7examplev': (11, 6)}


def test_the_table_shows_what_changed():
    kernel = build_report.Kernel('float', 'forward', 'D = 32')
    gone = build_report.Kernel('float', 'owners', 'any')
    before = {
        kernel: {'90': build_report.KernelReport(kernel, 72, 8, 300, 100)},
        gone: {'90': build_report.KernelReport(gone, 80, 0, 500, None)},
    }
    after = {kernel: {'90': build_report.KernelReport(kernel, 70, 0, 300, 90)}}
    assert build_report.table(after, before, ['90'])[2:] == [
        '| float | forward | D = 32 | 300 | 100 → 90 | 72 (8 B) → 70 |',
        '| float | owners | any | 500 → gone | none → gone | 80 → gone |',
    ]


def _symbols(*nm_arguments: str) -> set[str]:
    lines = subprocess.run(
        ['nm', *nm_arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {line.split()[-1].partition('@')[0] for line in lines if line.strip()}


@pytest.mark.skipif(not (shutil.which(CXX) and shutil.which('nm')), reason='there is no C++ compiler with nm')
def test_symbols_needed_from_pytorch_are_in_its_cpu_library(tmp_path):
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
