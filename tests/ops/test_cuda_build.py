"""What nvcc makes of the kernels. Needs nvcc and no GPU."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location('build_report', ROOT / 'ops' / 'build_report.py')
build_report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_report)

pytestmark = pytest.mark.skipif(build_report.find_nvcc() is None, reason='there is no nvcc')


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
