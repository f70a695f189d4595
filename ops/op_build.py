"""Build commands of `ddetr_ops`, used by setup.py: two libraries on LibTorch's Stable ABI and the wheel's tag.

`_C` (schemas and CPU kernels) is always built, `_C_cuda` where FORCE_CUDA=1 or a GPU is visible. Neither contains a
Python symbol, and both target PyTorch 2.10: one binary serves every CPython and every later PyTorch. A library that
cannot be built fails the install, unless DDETR_OPS_ALLOW_FALLBACK=1; the build then writes the cause to
`NAME.missing.txt` in the package, and the warning at first use quotes it. README.md lists the environment variables.
"""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
MIN_TORCH = (2, 10)  # the oldest that has all we need
TARGET = '0x020A000000000000'  # the same for TORCH_TARGET_VERSION
DEFAULT_ARCHS = ('7.5', '8.0', '8.6', '8.9', '9.0', '10.0')  # those that nvcc knows, PTX of the last


class BuildError(Exception):
    """A library cannot be built; the first argument says why in one or two sentences."""


class Commands(NamedTuple):
    """How one library is compiled and linked; without the names of the files."""

    compile: tuple[str, ...]
    link: tuple[str, ...]
    link_end: tuple[str, ...]  # behind the object files
    object_flag: str = '-o'  # the name of an object file and of the library follow without a space
    library_flag: str = '-o'

    def compile_one(self, source: str, target: str) -> list[str]:
        return [*self.compile, '-c', source, self.object_flag + target]

    def link_all(self, objects: list[str], target: str) -> list[str]:
        return [*self.link, *objects, self.library_flag + target, *self.link_end]


class CudaPlan(NamedTuple):
    nvcc: str
    archs: list[str]  # like '9.0' or '9.0+PTX'


def library_suffix(platform: str = sys.platform) -> str:
    """File name ending of a library; `ddetr_ops._library` looks for the same."""
    return '.dll' if platform == 'win32' else '.so'


# ---- PyTorch ----
def find_torch() -> Path:
    """Folder of the installed PyTorch, found without importing it.

    Raises:
        BuildError: There is none, or it is too old.
    """
    spec = importlib.util.find_spec('torch')
    if spec is None or spec.origin is None:
        raise BuildError(
            'PyTorch is not installed in the environment that builds. Install torch>=2.10 there, or let pip do it: '
            'leave out --no-build-isolation.'
        )
    version = importlib.metadata.version('torch')
    if tuple(int(part) for part in version.split('.')[:2]) < MIN_TORCH:
        raise BuildError(f'PyTorch {version} is too old: ddetr_ops needs 2.10 or later.')
    return Path(spec.origin).parent


# ---- C++ ----
def cpp_commands(platform: str, torch_folder: Path, environ: dict[str, str]) -> Commands:
    """Compiler and linker of the C++ library: GCC or clang, clang-cl on Windows.

    Args:
        platform: As `sys.platform`.
        torch_folder: Folder of the package torch.
        environ: CXX names the compiler, ARCHFLAGS (macOS) the processors.
    """
    include, lib = str(torch_folder / 'include'), str(torch_folder / 'lib')
    target = f'-DTORCH_TARGET_VERSION={TARGET}'
    if platform == 'win32':
        compiler = environ.get('CXX', 'clang-cl').split()
        flags = ['/nologo', '/std:c++20', '/O2', '/EHsc', '/MD', '-Wall', '/clang:-fno-trapping-math', target]
        compile_ = (*compiler, *flags, f'/imsvc{include}')
        link = (*compiler, '/nologo', '/LD')
        link_end = ('/link', f'/LIBPATH:{lib}', 'torch_cpu.lib')
        return Commands(compile_, link, link_end, object_flag='/Fo', library_flag='/Fe')
    compiler = environ.get('CXX', 'c++').split()
    flags = ['-std=c++20', '-O3', '-fPIC', '-fvisibility=hidden', '-Wall']
    # The first is clang's, the second GCC's. Nobody reads the floating-point flags, and without them loops vectorise.
    flags += ['-Wno-unknown-warning-option', '-Wno-maybe-uninitialized', '-fno-trapping-math']
    if platform == 'darwin':
        archs = environ.get('ARCHFLAGS', '').split()
        # PyTorch's libraries are found by @rpath: beside us in site-packages, if not loaded yet.
        link = [*compiler, *archs, '-shared', '-Wl,-x', '-Wl,-rpath,@loader_path/../torch/lib']
    else:
        archs = []
        link = [*compiler, '-shared', '-s']
    compile_ = (*compiler, *archs, *flags, '-isystem', include, target)
    return Commands(compile_, tuple(link), (f'-L{lib}', '-ltorch_cpu'))


# ---- CUDA ----
def find_nvcc(environ: dict[str, str]) -> str | None:
    """nvcc by NVCC, else CUDA_HOME or CUDA_PATH, else PATH, else /usr/local/cuda; None if there is none.

    Raises:
        BuildError: The first of these variables that is set leads to no nvcc.
    """
    for variable, inside in (('NVCC', ''), ('CUDA_HOME', '/bin/nvcc'), ('CUDA_PATH', '/bin/nvcc')):
        if environ.get(variable):
            path = environ[variable] + inside
            if shutil.which(path) is None:
                raise BuildError(f'{variable}={environ[variable]}, but {path} is not a program.')
            return path
    return shutil.which('nvcc', path=environ.get('PATH')) or shutil.which('/usr/local/cuda/bin/nvcc')


def visible_archs() -> tuple[str, ...]:
    """Compute capabilities of the GPUs that the installed PyTorch sees, like '9.0'; empty without a GPU."""
    try:
        import torch
    except ImportError:
        return ()
    if not (torch.version.cuda and torch.cuda.is_available()):
        return ()
    found = {torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())}
    return tuple(f'{major}.{minor}' for major, minor in sorted(found))


def known_archs(nvcc: str) -> set[str]:
    """What this nvcc compiles for, like '90'."""
    listed = subprocess.run([nvcc, '--list-gpu-arch'], capture_output=True, text=True)
    archs = set(re.findall(r'compute_(\d+)', listed.stdout))
    if not archs:
        raise BuildError(f'{nvcc} --list-gpu-arch lists no architecture: {listed.stderr.strip()}')
    return archs


def choose_archs(wish: str | None, visible: tuple[str, ...], known: set[str]) -> list[str]:
    """Architectures to compile for, like '9.0' or '9.0+PTX'.

    Args:
        wish: TORCH_CUDA_ARCH_LIST ('8.0;9.0+PTX'), used as it is; else the visible GPUs' with PTX of the last, else
            those of DEFAULT_ARCHS that nvcc knows.
        visible: As `visible_archs` gives them.
        known: As `known_archs` gives them.

    Raises:
        BuildError: An entry is not of that form, or nvcc does not know it.
    """
    if wish:
        chosen = [entry for entry in re.split(r'[;,\s]+', wish) if entry]
    else:
        chosen = list(visible) or [a for a in DEFAULT_ARCHS if a.replace('.', '') in known]
        chosen[-1:] = [f'{last}+PTX' for last in chosen[-1:]]
    for entry in chosen:
        match = re.fullmatch(r'(\d+)\.(\d)([af]?)(\+PTX)?', entry)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST: '{entry}' is not like 8.0 or 9.0+PTX.")
        if match[1] + match[2] not in known:
            raise BuildError(
                f'This nvcc does not compile for {entry}, only for {", ".join(sorted(known, key=int))}. Choose with '
                'TORCH_CUDA_ARCH_LIST, or take a newer one with CUDA_HOME.'
            )
    if not chosen:
        raise BuildError(f'This nvcc knows none of {", ".join(DEFAULT_ARCHS)}: set TORCH_CUDA_ARCH_LIST.')
    return chosen


def arch_flags(archs: list[str]) -> list[str]:
    """nvcc's flags for architectures as `choose_archs` gives them."""
    flags = []
    for entry in archs:
        number = entry.removesuffix('+PTX').replace('.', '')
        flags.append(f'-gencode=arch=compute_{number},code=sm_{number}')
        if entry.endswith('+PTX'):
            flags.append(f'-gencode=arch=compute_{number},code=compute_{number}')
    return flags


def cuda_commands(plan: CudaPlan, torch_folder: Path) -> Commands:
    """nvcc's commands for the CUDA library; the CUDA runtime is linked into it."""
    flags = ['-std=c++20', '-O3', '-DUSE_CUDA', '--expt-relaxed-constexpr', *arch_flags(plan.archs)]
    flags += ['-Xcompiler', '-fPIC,-fvisibility=hidden', '-isystem', str(torch_folder / 'include')]
    flags += [f'-DTORCH_TARGET_VERSION={TARGET}']
    link = (plan.nvcc, '-shared', '-cudart', 'static')
    link_end = (f'-L{torch_folder / "lib"}', '-ltorch_cpu')
    return Commands((plan.nvcc, *flags), link, link_end, '--output-file=', '--output-file=')


def plan_cuda(environ: dict[str, str], platform: str) -> CudaPlan | str:
    """How `_C_cuda` is to be built, or a sentence that says why it is not.

    Raises:
        BuildError: It is to be built (FORCE_CUDA=1, or a GPU is visible) and cannot be.
    """
    force = environ.get('FORCE_CUDA') or None
    if force not in (None, '0', '1'):
        raise BuildError(f"FORCE_CUDA must be 1 or 0, got '{force}'.")
    if force == '0':
        return 'FORCE_CUDA was 0 when ddetr_ops was built.'
    visible = visible_archs()
    if force is None and not visible:
        return 'No GPU was visible when ddetr_ops was built, and FORCE_CUDA was not 1.'
    if platform != 'linux':
        raise BuildError('The CUDA kernels are built on Linux only. FORCE_CUDA=0 does without them.')
    nvcc = find_nvcc(environ)
    if nvcc is None:
        cause = 'FORCE_CUDA=1 asks for the CUDA kernels' if force else 'A GPU is visible'
        raise BuildError(
            f'{cause}, but there is no nvcc. Set CUDA_HOME to the CUDA toolkit, or FORCE_CUDA=0 to do without them.'
        )
    return CudaPlan(nvcc, choose_archs(environ.get('TORCH_CUDA_ARCH_LIST'), visible, known_archs(nvcc)))


# ---- setuptools ----
def _sources(*patterns: str) -> list[str]:
    paths = sorted(path for pattern in patterns for path in (HERE / 'csrc').glob(pattern))
    return [path.relative_to(HERE).as_posix() for path in paths]  # relative: setuptools demands it


def extensions() -> list[Extension]:
    """Both libraries, for `setup(ext_modules=...)`; whether `_C_cuda` is built is decided when building."""
    return [
        Extension('ddetr_ops._C', _sources('*.cpp', 'cpu/*.cpp')),
        Extension('ddetr_ops._C_cuda', _sources('cuda/*.cu', 'cuda/*.cpp')),
    ]


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 on one platform: the libraries contain no Python symbol."""

    def get_tag(self) -> tuple[str, str, str]:
        return 'py3', 'none', super().get_tag()[2]


class BuildOps(build_ext):
    """build_ext for the libraries above, by the commands above."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split('.')) + library_suffix()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        note = target.with_suffix('.missing.txt')
        for old in (target, note):
            old.unlink(missing_ok=True)
        try:
            left_out = self._build(ext, target)
        except BuildError as problem:
            left_out = str(problem)
            self._require_fallback(ext.name, left_out)
        if left_out is not None:
            note.write_text(left_out + '\n')

    def _require_fallback(self, name: str, problem: str) -> None:
        if name.endswith('_cuda') and os.environ.get('FORCE_CUDA') == '1':
            raise CompileError(f'{name} cannot be built. {problem}')
        if os.environ.get('DDETR_OPS_ALLOW_FALLBACK') != '1':
            raise CompileError(
                f'{name} cannot be built. {problem} (DDETR_OPS_ALLOW_FALLBACK=1 installs ddetr_ops without it: plain '
                'PyTorch, many times slower.)'
            )
        self.warn(f'{name} was not built, ddetr_ops falls back to plain PyTorch. {problem}')

    def _build(self, ext: Extension, target: Path) -> str | None:
        """Build one library; None, or why it is not wanted."""
        environ = dict(os.environ)
        if ext.name.endswith('_cuda'):
            plan = plan_cuda(environ, sys.platform)
            if isinstance(plan, str):
                return plan
            commands = cuda_commands(plan, find_torch())
        else:
            commands = cpp_commands(sys.platform, find_torch(), environ)
        folder = Path(self.build_temp, ext.name)
        folder.mkdir(parents=True, exist_ok=True)
        objects = [str(folder / (Path(source).name + '.o')) for source in ext.sources]
        with ThreadPoolExecutor(_jobs(environ)) as pool:
            list(pool.map(_run, map(commands.compile_one, ext.sources, objects)))
        _run(commands.link_all(objects, str(target)))
        return None

    def copy_extensions_to_source(self) -> None:
        folder = Path(self.get_finalized_command('build_py').get_package_dir('ddetr_ops'))
        for ext in self.extensions:
            library = Path(self.build_lib, self.get_ext_filename(ext.name))
            for built in (library, library.with_suffix('.missing.txt')):
                place = folder / built.name
                if built.exists():
                    # Beside it and then in its place: a running process keeps the library that it has loaded.
                    shutil.copy2(built, f'{place}.new')
                    os.replace(f'{place}.new', place)
                else:
                    place.unlink(missing_ok=True)


def _jobs(environ: dict[str, str]) -> int:
    if environ.get('MAX_JOBS'):
        return int(environ['MAX_JOBS'])
    if hasattr(os, 'sched_getaffinity'):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"There is no C++ compiler '{command[0]}': install one (g++ 11, clang 14 or later), or name it in CXX."
        )
    print(' '.join(command), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.stdout:
        print(done.stdout, flush=True)
    if done.returncode:
        error = re.search('.*(error|fatal).*', done.stdout)
        first = error[0].strip() if error else 'it printed no error'
        raise BuildError(f'{command[0]} failed with status {done.returncode}: {first}.')
