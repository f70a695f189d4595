"""How `ddetr_ops` compiles: used by its own setup.py and by ddetr's, which installs both packages at once.

Two libraries without a line of Python in them: `_C` (schemas and CPU kernels) and, where nvcc is and a GPU is
visible or FORCE_CUDA=1, `_C_cuda`. Both stand on LibTorch's Stable ABI, target 2.10: one binary for every PyTorch
from there on. Nothing but a compiler and PyTorch's headers is needed; without them the install still succeeds and
`ddetr_ops` falls back to plain PyTorch, which it says when imported.

Environment: FORCE_CUDA=1 or 0; TORCH_CUDA_ARCH_LIST, as in PyTorch ('8.0;9.0+PTX'); MAX_JOBS; CXX; NVCC.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
TARGET = '0x020A000000000000'  # PyTorch 2.10, the oldest that has all we need
DEFAULT_ARCHS = '7.5;8.0;8.6;8.9;9.0;10.0+PTX'


def _sources(*patterns: str) -> list[str]:
    # Relative to setup.py's folder, which is the working directory: setuptools asks for that.
    paths = sorted(path for pattern in patterns for path in (HERE / 'csrc').glob(pattern))
    return [os.path.relpath(path) for path in paths]


def _find_nvcc() -> str | None:
    return os.environ.get('NVCC') or shutil.which('nvcc')


def wants_cuda() -> bool:
    """Whether `_C_cuda` is to be built: nvcc is there, and a GPU is visible or FORCE_CUDA=1 asks for it."""
    force = os.environ.get('FORCE_CUDA')
    if _find_nvcc() is None or force == '0':
        return False
    if force == '1':
        return True
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def extensions() -> list[Extension]:
    """The libraries to build here, for `setup(ext_modules=...)`."""
    found = [Extension('ddetr_ops._C', _sources('*.cpp', 'cpu/*.cpp'), py_limited_api=True, optional=True)]
    cuda_sources = _sources('cuda/*.cu', 'cuda/*.cpp')
    if cuda_sources and wants_cuda():
        found.append(Extension('ddetr_ops._C_cuda', cuda_sources, py_limited_api=True, optional=True))
    return found


def arch_flags(arch_list: str) -> list[str]:
    """nvcc's flags for a list like '8.0;9.0+PTX'.

    Raises:
        ValueError: an entry is not of that form.
    """
    flags = []
    for entry in re.split(r'[;,\s]+', arch_list.strip()):
        match = re.fullmatch(r'(\d+)\.(\d+)([af]?)(\+PTX)?', entry)
        if match is None:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST: '{entry}' is not like 8.0 or 9.0+PTX")
        number = match[1] + match[2] + match[3]
        flags.append(f'-gencode=arch=compute_{number},code=sm_{number}')
        if match[4]:
            flags.append(f'-gencode=arch=compute_{number},code=compute_{number}')
    return flags


def _cuda_archs() -> str:
    if 'TORCH_CUDA_ARCH_LIST' in os.environ:
        return os.environ['TORCH_CUDA_ARCH_LIST']
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f'{major}.{minor}+PTX'
    return DEFAULT_ARCHS


class BuildOps(build_ext):
    """build_ext for the libraries above; other extensions build as usual.

    A library that does not compile is left out with a message that says why: the install goes on.
    """

    def build_extension(self, ext: Extension) -> None:
        if not ext.name.startswith('ddetr_ops.'):
            super().build_extension(ext)
            return
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target) or '.', exist_ok=True)
        try:
            import torch

            torch_folder = os.path.dirname(torch.__file__)
            flags = ['-isystem', os.path.join(torch_folder, 'include'), f'-DTORCH_TARGET_VERSION={TARGET}']
            build = self._build_cuda if ext.name.endswith('_cuda') else self._build_cpp
            build(ext, target, flags, os.path.join(torch_folder, 'lib'))
        except Exception as error:  # whatever it was, the package works without
            self._left_out(ext, target, error)

    def _left_out(self, ext: Extension, target: str, error: Exception) -> None:
        reason = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            reason = f'{error.cmd[0]} failed with status {error.returncode}:\n{error.output}'
        Path(target).unlink(missing_ok=True)
        self.warn(f'{ext.name} was not built, ddetr_ops falls back to plain PyTorch. {reason}')

    def copy_extensions_to_source(self) -> None:
        folder = Path(self.get_finalized_command('build_py').get_package_dir('ddetr_ops'))
        for ext in self.extensions:
            built = Path(self.build_lib, self.get_ext_filename(ext.name))
            if ext.name.startswith('ddetr_ops.') and not built.exists():
                (folder / built.name).unlink(
                    missing_ok=True
                )  # of an earlier build: it does not match the sources
        super().copy_extensions_to_source()

    def _objects(self, compiler: list[str], sources: list[str], folder: str) -> list[str]:
        objects = [os.path.join(folder, os.path.basename(source) + '.o') for source in sources]
        jobs = int(os.environ.get('MAX_JOBS', 0)) or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(jobs) as pool:
            commands = [[*compiler, '-c', s, '-o', o] for s, o in zip(sources, objects, strict=True)]
            list(pool.map(_run, commands))
        return objects

    def _build_cpp(self, ext: Extension, target: str, flags: list[str], torch_lib: str) -> None:
        compiler = os.environ.get('CXX', 'c++').split()
        if shutil.which(compiler[0]) is None:
            raise RuntimeError(f"There is no C++ compiler '{compiler[0]}': install one (g++ 11 or later).")
        folder = os.path.join(self.build_temp, ext.name)
        os.makedirs(folder, exist_ok=True)
        options = ['-std=c++20', '-O3', '-fPIC', '-fvisibility=hidden', '-Wall', '-Wno-maybe-uninitialized']
        options += ['-fno-trapping-math']  # nobody reads the floating-point flags, and loops vectorise
        objects = self._objects([*compiler, *options, *flags], ext.sources, folder)
        _link([*compiler, '-shared', '-s', *objects, f'-L{torch_lib}', '-ltorch_cpu'], target)

    def _build_cuda(self, ext: Extension, target: str, flags: list[str], torch_lib: str) -> None:
        nvcc = [_find_nvcc() or 'nvcc']
        folder = os.path.join(self.build_temp, ext.name)
        os.makedirs(folder, exist_ok=True)
        options = ['-std=c++20', '-O3', '-DUSE_CUDA', '--expt-relaxed-constexpr', *arch_flags(_cuda_archs())]
        options += ['-Xcompiler', '-fPIC,-fvisibility=hidden']
        objects = self._objects([*nvcc, *options, *flags], ext.sources, folder)
        _link([*nvcc, '-shared', '-cudart', 'static', *objects, f'-L{torch_lib}', '-ltorch_cpu'], target)


def _link(command: list[str], target: str) -> None:
    # Beside it and then in its place: a running process keeps the library that it has loaded.
    _run([*command, '-o', f'{target}.new'])
    os.replace(f'{target}.new', target)


def _run(command: list[str]) -> None:
    print(' '.join(command), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
