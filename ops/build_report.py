"""Instructions, registers and spills of every CUDA kernel, from the assembler and the disassembler.

    python ops/build_report.py                                    # fp32, fp16, bf16, fp64 for sm_80, 90 and 100
    python ops/build_report.py --arch 90 --type float             # a part of it
    python ops/build_report.py --before 23f9718 > ops/csrc/cuda/KERNELS.md    # beside an older commit

Needs nvcc and nvdisasm (CUDA toolkit; PyTorch's Triton brings nvdisasm, too), no GPU. Prints a Markdown table; fails if
a kernel for fp32, fp16 or bf16 spills registers.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CUDA = 'ops/csrc/cuda'
ARCHS = ('80', '90', '100')
TYPES = ('float', 'half', 'bfloat16', 'double')

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r'(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?'
    r'Used (?P<registers>\d+) registers',
    re.DOTALL,
)
# Traits<T, V, LANES, D, FUSED>, in older commits Plan<T, V, LANES, D, L, P, FUSED>
_TRAITS = re.compile(
    r'(?:Traits|Plan)<(?P<type>[\w:]+), (?P<v>\d+), (?P<lanes>\d+), (?P<d>\d+), (?:\d+, \d+, )?(?P<fused>\w+)>'
)
_INSTRUCTION = re.compile(r'^\s+/\*[0-9a-f]{4,}\*/\s+(.*?);')
_LABEL = re.compile(r'^(\.L_x_\d+):')


class Kernel(NamedTuple):
    type: str  # source file's stem: float, half, bfloat16, double
    name: str  # forward, fused backward (merged), ...
    shape: str  # what is known at compile time


class KernelReport(NamedTuple):
    kernel: Kernel
    registers: int
    spilled_bytes: int  # spill stores and loads, or the stack frame if that is larger
    instructions: int | None  # None: not disassembled
    loop: int | None  # instructions of the innermost loop over points; None: unrolled, or no such loop


def find_nvcc() -> str | None:
    return shutil.which('nvcc')


def find_nvdisasm() -> str | None:
    """On the PATH, or in the Triton package beside PyTorch."""
    found = shutil.which('nvdisasm')
    triton = importlib.util.find_spec('triton')
    if found is None and triton is not None and triton.origin is not None:
        path = Path(triton.origin).parent / 'backends' / 'nvidia' / 'bin' / 'nvdisasm'
        found = str(path) if path.exists() else None
    return found


def _demangle(names: list[str]) -> list[str]:
    done = subprocess.run(['c++filt'], input='\n'.join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _describe(element_type: str, demangled: str) -> Kernel:
    kernel = re.search(r'(\w+)_kernel<', demangled)
    assert kernel is not None, demangled
    name = kernel[1].replace('_', ' ')
    traits = _TRAITS.search(demangled)
    if traits is None:
        return Kernel(element_type, name, 'any')
    scatter = {'0': ' (direct)', '1': ' (merged)'}
    name = ('fused ' if traits['fused'] == 'true' else '') + name
    name += scatter.get((re.search(r'Scatter\)(\d)', demangled) or [''] * 2)[1], '')
    if traits['d'] != '0':
        return Kernel(element_type, name, f'D = {traits["d"]}')
    return Kernel(element_type, name, 'any D, scalar' if traits['v'] == '1' else 'any D, vectors')


def _loop_over_points(instructions: list[str], labels: dict[str, int]) -> int | None:
    """Length of the innermost loop with the most multiply-adds among those that load at least four times."""
    loops = []
    for end, instruction in enumerate(instructions):
        target = re.search(r'\bBRA.*`\((\.L_x_\d+)\)', instruction)
        if target is not None and labels.get(target[1], end + 1) <= end:
            loops.append((labels[target[1]], end))
    best: tuple[int, int] | None = None
    for begin, end in loops:
        if any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops):
            continue
        body = instructions[begin : end + 1]
        if sum('LDG' in i for i in body) >= 4:
            best = max(best or (0, 0), (sum('FMA' in i for i in body), len(body)))
    return None if best is None else best[1]


def read_sass(cubin: Path, nvdisasm: str) -> dict[str, tuple[int, int | None]]:
    """Instructions of each kernel and of its loop over points, by mangled name."""
    text = subprocess.run([nvdisasm, '-c', str(cubin)], capture_output=True, text=True, check=True).stdout
    counts = {}
    for section in re.split(r'\n\s*\.section\s+', text):
        name = re.match(r'\.text\.(\w+)', section)
        if name is None:
            continue
        labels: dict[str, int] = {}
        instructions: list[str] = []
        for line in section.splitlines():
            if label := _LABEL.match(line):
                labels[label[1]] = len(instructions)
            elif instruction := _INSTRUCTION.match(line):
                instructions.append(instruction[1])
        while instructions and instructions[-1].startswith(('NOP', 'BRA')):  # padding
            instructions.pop()
        counts[name[1]] = (len(instructions), _loop_over_points(instructions, labels))
    return counts


def compile_and_read(
    element_type: str, arch: str, root: Path = ROOT, nvdisasm: str | None = None
) -> list[KernelReport]:
    """Compile one element type's kernels for one architecture.

    Args:
        element_type: One of `TYPES`.
        arch: Compute capability without the dot, like '90'.
        root: Folder that holds ops/csrc.
        nvdisasm: The disassembler, None to count no instructions.

    Raises:
        RuntimeError: nvcc is missing or does not compile them; with its output.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError('There is no nvcc on the PATH: install the CUDA toolkit.')
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / 'kernels.cubin'
        command = [nvcc, '-std=c++20', '-O3', f'-arch=sm_{arch}', '-cubin', '-Xptxas', '-v']
        command += [str(root / CUDA / f'{element_type}.cu'), '-o', str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr}')
        counts = {} if nvdisasm is None else read_sass(cubin, nvdisasm)
    entries = [match.groupdict() for match in _ENTRY.finditer(done.stderr)]
    reports = []
    for entry, demangled in zip(entries, _demangle([e['name'] for e in entries]), strict=True):
        spilled = max(int(entry['stack']), int(entry['stores']) + int(entry['loads']))
        kernel = _describe(element_type, demangled)
        reports.append(
            KernelReport(kernel, int(entry['registers']), spilled, *counts.get(entry['name'], (None, None)))
        )
    return reports


Reports = dict[Kernel, dict[str, KernelReport]]  # by kernel and architecture


def read_all(types: list[str], archs: list[str], root: Path, nvdisasm: str) -> Reports:
    reports: Reports = {}
    for element_type in types:
        for arch in archs:
            print(f'{element_type}, sm_{arch} ...', file=sys.stderr, flush=True)
            for report in compile_and_read(element_type, arch, root, nvdisasm):
                reports.setdefault(report.kernel, {})[arch] = report
    return reports


def read_commit(commit: str, types: list[str], archs: list[str], nvdisasm: str) -> Reports:
    """The kernels of an older commit, compiled by today's nvcc."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ['git', '-C', str(ROOT), 'archive', commit, 'ops/csrc'], capture_output=True, check=True
        )
        subprocess.run(['tar', 'x', '-C', folder], input=archive.stdout, check=True)
        return read_all(types, archs, Path(folder), nvdisasm)


def _cells(report: KernelReport | None) -> list[str]:
    if report is None:
        return ['', '', '']
    spilled = f' ({report.spilled_bytes} B)' if report.spilled_bytes else ''
    return [str(report.instructions), str(report.loop or 'none'), f'{report.registers}{spilled}']


def table(reports: Reports, before: Reports, archs: list[str]) -> list[str]:
    """Markdown rows; with `before` its figures stand before an arrow where they differ."""
    columns = [f'sm_{arch} {what}' for arch in archs for what in ('instructions', 'loop', 'registers')]
    lines = ['| type | kernel | known | ' + ' | '.join(columns) + ' |']
    lines.append('|---|---|---|' + '---:|' * len(columns))
    for kernel in sorted(reports.keys() | before.keys()):
        row = []
        for arch in archs:
            old = _cells(before.get(kernel, {}).get(arch))
            new = _cells(reports.get(kernel, {}).get(arch))
            row += [n if o in ('', n) else f'{o} → {n or "gone"}' for o, n in zip(old, new, strict=True)]
        lines.append(f'| {" | ".join(kernel)} | ' + ' | '.join(row) + ' |')
    return lines


HEADER = """# What nvcc makes of the kernels

Made by `python ops/build_report.py{before}` with {nvcc}.

SASS instructions of each kernel, of its innermost loop over points (none: it is unrolled), and registers per thread,
with bytes of spills in parentheses. {arrow}Forward loops take two points, or one where a lane
holds several vectors of a head (D = 64 and 128 in fp32, 128 in 16 bits); backward loops take as many as the assembler
finds registers for."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--arch', nargs='+', default=ARCHS, help='compute capabilities without the dot')
    parser.add_argument('--type', nargs='+', default=TYPES, choices=TYPES)
    parser.add_argument('--before', metavar='COMMIT', help='compare with the kernels of this commit')
    args = parser.parse_args()
    nvdisasm, nvcc = find_nvdisasm(), find_nvcc()
    if nvdisasm is None or nvcc is None:
        sys.exit('nvcc or nvdisasm is not on the PATH: install the CUDA toolkit.')
    before = read_commit(args.before, args.type, args.arch, nvdisasm) if args.before else {}
    reports = read_all(args.type, args.arch, ROOT, nvdisasm)
    version = subprocess.run([nvcc, '--version'], capture_output=True, text=True, check=True).stdout
    release = re.search(r'release [\d.]+', version)
    print(
        HEADER.format(
            before=f' --before {args.before}' if args.before else '',
            nvcc=f'nvcc {release[0]}' if release else 'nvcc',
            arrow=f'Left of an arrow: commit {args.before}. ' if args.before else '',
        )
    )
    print('\n' + '\n'.join(table(reports, before, args.arch)))
    spilling = [
        f'{", ".join(kernel)}, sm_{arch}'
        for kernel, by_arch in reports.items()
        for arch, report in by_arch.items()
        if report.spilled_bytes and kernel.type != 'double'
    ]
    if spilling:
        print('These kernels spill registers:\n' + '\n'.join(spilling), file=sys.stderr)
    return 1 if spilling else 0


if __name__ == '__main__':
    sys.exit(main())
