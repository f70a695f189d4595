"""Registers, spills and shared memory of every CUDA kernel, as the assembler reports them.

    python ops/build_report.py                      # all architectures, fp32, fp16, bf16 and fp64
    python ops/build_report.py --arch 80 90 --type float

Needs nvcc and no GPU. Prints a Markdown table; fails if a kernel for fp32, fp16 or bf16 spills registers.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent / 'csrc' / 'cuda'
ARCHS = ('75', '80', '86', '89', '90', '100')
TYPES = ('float', 'half', 'bfloat16', 'double')

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r'(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?'
    r'Used (?P<registers>\d+) registers',
    re.DOTALL,
)
_PLAN = re.compile(
    r'Plan<(?P<type>[\w:]+), (?P<v>\d+), (?P<lanes>\d+), (?P<d>\d+), \d+, \d+, (?P<fused>true|false)>'
)


class KernelReport(NamedTuple):
    arch: str  # like 90
    type: str  # source file's stem: float, half, bfloat16, double
    kernel: str  # forward, backward with merged or direct additions, owners
    shape: str  # what was known at compile time
    registers: int
    spilled_bytes: int  # stores and loads, and a stack frame without spills counts too


def find_nvcc() -> str | None:
    return shutil.which('nvcc')


def _demangle(names: list[str]) -> list[str]:
    done = subprocess.run(['c++filt'], input='\n'.join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _describe(name: str) -> tuple[str, str]:
    kernel = re.search(r'(\w+)_kernel<', name)
    plan = _PLAN.search(name)
    assert kernel is not None, name
    if plan is None:
        return kernel[1], 'any'
    fused = 'fused ' if plan['fused'] == 'true' else ''
    scatter = {'0': ' (direct)', '1': ' (merged)'}.get((re.search(r'Scatter\)(\d)', name) or [''] * 2)[1], '')
    width = 'one channel a lane' if plan['v'] == '1' else f'{plan["lanes"]} lanes x {plan["v"]}'
    return fused + kernel[1] + scatter, f'{width}, ' + (
        'D=32 L=4 P=4' if plan['d'] == '32' else 'any D, L, P'
    )


def compile_and_read(element_type: str, arch: str) -> list[KernelReport]:
    """Compile one element type's kernels for one architecture.

    Raises:
        RuntimeError: nvcc does not compile them; with its output.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError('There is no nvcc on the PATH: install the CUDA toolkit.')
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, '-std=c++20', '-O3', f'-arch=sm_{arch}', '-cubin', '-Xptxas', '-v']
        command += [str(SOURCES / f'{element_type}.cu'), '-o', f'{folder}/kernels.cubin']
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr}')
    entries = [match.groupdict() for match in _ENTRY.finditer(done.stderr)]
    reports = []
    for entry, name in zip(entries, _demangle([e['name'] for e in entries]), strict=True):
        kernel, shape = _describe(name)
        spilled = max(int(entry['stack']), int(entry['stores']) + int(entry['loads']))
        reports.append(KernelReport(arch, element_type, kernel, shape, int(entry['registers']), spilled))
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', nargs='+', default=ARCHS, help='compute capabilities without the dot')
    parser.add_argument('--type', nargs='+', default=TYPES, choices=TYPES)
    args = parser.parse_args()
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    spills = 0
    for element_type in args.type:
        for arch in args.arch:
            print(f'{element_type}, sm_{arch} ...', file=sys.stderr, flush=True)
            for report in compile_and_read(element_type, arch):
                cell = f'{report.registers}' + (
                    f' ({report.spilled_bytes} B)' if report.spilled_bytes else ''
                )
                rows.setdefault((report.type, report.kernel, report.shape), {})[arch] = cell
                spills += report.spilled_bytes > 0 and element_type != 'double'
    print('Registers a thread (bytes of stack, where any are spilled).\n')
    print(
        '| type | kernel | known at compile time | ' + ' | '.join(f'sm_{arch}' for arch in args.arch) + ' |'
    )
    print('|---|---|---|' + '---:|' * len(args.arch))
    for (element_type, kernel, shape), cells in sorted(rows.items()):
        print(
            f'| {element_type} | {kernel} | {shape} | ' + ' | '.join(cells[arch] for arch in args.arch) + ' |'
        )
    if spills:
        print(f'{spills} kernels for fp32, fp16 or bf16 spill registers', file=sys.stderr)
    return 1 if spills else 0


if __name__ == '__main__':
    sys.exit(main())
