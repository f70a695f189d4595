import filecmp
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import ddetr_ops
import pytest
import torch

OPS = Path(__file__).resolve().parents[2] / 'ops'
if not (OPS / 'op_build.py').exists():
    pytest.skip('the sources are not here', allow_module_level=True)
SPEC = importlib.util.spec_from_file_location('op_build', OPS / 'op_build.py')
op_build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(op_build)


@pytest.fixture
def source(tmp_path) -> Path:
    """A copy of the sources, with Python files that import nothing."""
    for name in ('setup.py', 'pyproject.toml', 'op_build.py', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(OPS / name, tmp_path)
    shutil.copytree(OPS / 'csrc', tmp_path / 'csrc')
    for package in ('ddetr_ops', 'ddetr_ops/compat'):
        (tmp_path / package).mkdir()
        (tmp_path / package / '__init__.py').write_text("__version__ = '1.0.0'\n")
    return tmp_path


def _build_in_place(source: Path, **env: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name != 'DDETR_OPS_ALLOW_FALLBACK'}
    return subprocess.run(
        [sys.executable, 'setup.py', 'build_ext', '--inplace'],
        cwd=source, capture_output=True, text=True, env={**base, 'FORCE_CUDA': '0', **env},
    )  # fmt: skip


PROBLEMS = [
    ('no-such-compiler', "There is no C++ compiler 'no-such-compiler': install one"),
    ('false', 'false failed with status 1: it printed no error.'),
]


@pytest.mark.parametrize(('compiler', 'reason'), PROBLEMS)
def test_build_without_a_working_compiler_fails_with_the_cause(compiler, reason, source):
    run = _build_in_place(source, CXX=compiler)
    assert run.returncode != 0
    last = run.stderr.splitlines()[-1]
    assert last.startswith('error: ddetr_ops._C cannot be built. ' + reason)
    assert 'DDETR_OPS_ALLOW_FALLBACK=1' in last
    assert 'Traceback' not in run.stderr


@pytest.mark.parametrize(('compiler', 'reason'), PROBLEMS)
def test_fallback_is_enabled_by_a_variable_and_records_the_cause(compiler, reason, source):
    stale = source / 'ddetr_ops' / ('_C' + op_build.library_suffix())
    stale.write_bytes(b'of an earlier build')
    run = _build_in_place(source, CXX=compiler, DDETR_OPS_ALLOW_FALLBACK='1')
    assert run.returncode == 0, run.stderr
    assert not stale.exists()
    assert reason in (source / 'ddetr_ops' / '_C.missing.txt').read_text()
    assert 'FORCE_CUDA was 0' in (source / 'ddetr_ops' / '_C_cuda.missing.txt').read_text()


def test_requested_cuda_build_fails_even_with_the_fallback(source):
    """The C++ compiler is /usr/bin/true: its library is "built" before CUDA's turn comes."""
    run = _build_in_place(
        source, CXX='true', FORCE_CUDA='1', CUDA_HOME='/nowhere', DDETR_OPS_ALLOW_FALLBACK='1'
    )
    assert run.returncode != 0
    assert run.stderr.splitlines()[-1] == (
        'error: ddetr_ops._C_cuda cannot be built. CUDA_HOME=/nowhere, but /nowhere/bin/nvcc is not a program.'
    )


def test_source_distribution_contains_everything_a_build_needs(source):
    run = subprocess.run(
        [sys.executable, '-c', 'from setuptools import build_meta; print(build_meta.build_sdist("dist"))'],
        cwd=source, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    with tarfile.open(source / 'dist' / run.stdout.splitlines()[-1]) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    sources = {path.relative_to(OPS).as_posix() for path in (OPS / 'csrc').rglob('*') if path.is_file()}
    assert len(sources) > 20
    assert sources <= names
    assert {'setup.py', 'pyproject.toml', 'op_build.py', 'LICENSE', 'ddetr_ops/__init__.py'} <= names
    assert not [name for name in names if name.endswith(('.so', '.missing.txt'))]


def test_license_is_the_projects():
    assert filecmp.cmp(OPS / 'LICENSE', OPS.parent / 'LICENSE', shallow=False)


@pytest.mark.skipif(shutil.which('nm') is None, reason='there is no nm')
def test_libraries_contain_no_python_symbols():
    """Hence the wheel's tag: any Python 3, no ABI."""
    libraries = list(Path(ddetr_ops.__file__).parent.glob('*.so'))
    if not libraries:
        pytest.skip('no library was built')
    for library in libraries:
        symbols = subprocess.run(['nm', '-D', library], capture_output=True, text=True, check=True).stdout
        assert 'aoti_torch_' in symbols
        assert not re.findall(r'\b_?Py\w+', symbols)


def test_wheel_is_tagged_for_any_python(monkeypatch):
    monkeypatch.setattr(op_build.bdist_wheel, 'get_tag', lambda self: ('cp311', 'cp311', 'linux_x86_64'))
    assert op_build.PlatformWheel.get_tag(object.__new__(op_build.PlatformWheel)) == (
        'py3', 'none', 'linux_x86_64',
    )  # fmt: skip


# ---- the compilers' command lines, per platform ----
TORCH = Path('/torch')


def test_linux_builds_with_the_default_compiler():
    commands = op_build.cpp_commands('linux', TORCH, {})
    compile_ = commands.compile_one('a.cpp', 'a.o')
    assert compile_[0] == 'c++'
    assert compile_[-3:] == ['-c', 'a.cpp', '-oa.o']
    assert '-DTORCH_TARGET_VERSION=0x020A000000000000' in compile_
    assert compile_[compile_.index('-isystem') + 1] == '/torch/include'
    assert commands.link_all(['a.o', 'b.o'], '_C.so') == [
        'c++', '-shared', '-s', 'a.o', 'b.o', '-o_C.so', '-L/torch/lib', '-ltorch_cpu',
    ]  # fmt: skip


def test_macos_builds_for_the_wanted_processor_and_finds_pytorch_beside_itself():
    environ = {'CXX': 'clang++ -stdlib=libc++', 'ARCHFLAGS': '-arch arm64'}
    commands = op_build.cpp_commands('darwin', TORCH, environ)
    compiler = ['clang++', '-stdlib=libc++', '-arch', 'arm64']
    assert commands.compile_one('a.cpp', 'a.o')[:4] == compiler
    link = commands.link_all(['a.o'], '_C.so')
    assert link[:4] == compiler
    assert '-Wl,-rpath,@loader_path/../torch/lib' in link
    assert '-s' not in link  # Apple's linker has no such option
    assert link[-2:] == ['-L/torch/lib', '-ltorch_cpu']


def test_windows_builds_with_clang_cl():
    commands = op_build.cpp_commands('win32', TORCH, {})
    compile_ = commands.compile_one('a.cpp', 'a.o')
    assert compile_[0] == 'clang-cl'
    assert compile_[-3:] == ['-c', 'a.cpp', '/Foa.o']
    assert not {'-fPIC', '-O3', '-std=c++20'} & set(compile_)  # GCC's
    assert commands.link_all(['a.o'], '_C.dll') == [
        'clang-cl', '/nologo', '/LD', 'a.o', '/Fe_C.dll', '/link', '/LIBPATH:/torch/lib', 'torch_cpu.lib',
    ]  # fmt: skip
    assert op_build.library_suffix('win32') == '.dll'


def test_jobs_do_not_need_linux(monkeypatch):
    monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 5)
    assert op_build._jobs({}) == 5
    assert op_build._jobs({'MAX_JOBS': '3'}) == 3


# ---- PyTorch ----
def test_build_without_pytorch_tells_what_to_install(monkeypatch):
    monkeypatch.setattr(op_build.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(op_build.BuildError, match=r'PyTorch is not installed .* Install torch>=2\.10'):
        op_build.find_torch()


def test_an_old_pytorch_is_refused(monkeypatch):
    monkeypatch.setattr(op_build.importlib.metadata, 'version', lambda name: '2.9.1+cpu')
    with pytest.raises(op_build.BuildError, match=r'2\.9\.1\+cpu is too old: ddetr_ops needs 2\.10'):
        op_build.find_torch()
    monkeypatch.setattr(op_build.importlib.metadata, 'version', lambda name: '2.10.0a0+git1')
    assert op_build.find_torch() == Path(torch.__file__).parent


# ---- CUDA ----
def make_nvcc(folder: Path, archs: str = '75 80 90') -> Path:
    nvcc = folder / 'bin' / 'nvcc'
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f'#!/bin/sh\nfor arch in {archs}; do echo compute_$arch; done\n')
    nvcc.chmod(0o755)
    return nvcc


def test_nvcc_is_looked_up_in_cuda_home_before_path(tmp_path, monkeypatch):
    monkeypatch.setattr(op_build, 'visible_archs', lambda: ())
    home, on_path = make_nvcc(tmp_path / 'home'), make_nvcc(tmp_path / 'path')
    environ = {'PATH': str(on_path.parent)}
    assert op_build.find_nvcc(environ) == str(on_path)
    environ['CUDA_HOME'] = str(tmp_path / 'home')
    assert op_build.find_nvcc(environ) == str(home)
    environ['NVCC'] = str(on_path)
    assert op_build.find_nvcc(environ) == str(on_path)
    environ['NVCC'] = 'no-such-nvcc'
    with pytest.raises(op_build.BuildError, match='NVCC=no-such-nvcc, but no-such-nvcc is not a program'):
        op_build.find_nvcc(environ)


def test_cuda_is_built_if_requested_or_a_gpu_is_visible(tmp_path, monkeypatch):
    nvcc = str(make_nvcc(tmp_path))
    for visible, force, built in [
        ((), '1', True), ((), '0', False), ((), None, False), (('9.0',), None, True), (('9.0',), '0', False),
    ]:  # fmt: skip
        monkeypatch.setattr(op_build, 'visible_archs', lambda visible=visible: visible)
        environ = {'NVCC': nvcc} | ({'FORCE_CUDA': force} if force else {})
        plan = op_build.plan_cuda(environ, 'linux')
        assert isinstance(plan, op_build.CudaPlan if built else str), (visible, force)
    with pytest.raises(op_build.BuildError, match="FORCE_CUDA must be 1 or 0, got 'yes'"):
        op_build.plan_cuda({'FORCE_CUDA': 'yes'}, 'linux')


@pytest.mark.parametrize(
    ('force', 'message'), [({'FORCE_CUDA': '1'}, 'FORCE_CUDA=1 asks'), ({}, 'A GPU is visible')]
)
def test_cuda_without_nvcc_is_an_error(force, message, monkeypatch):
    monkeypatch.setattr(op_build, 'visible_archs', lambda: () if force else ('9.0',))
    monkeypatch.setattr(op_build.shutil, 'which', lambda *args, **kwargs: None)
    with pytest.raises(op_build.BuildError, match=f'{message}.* there is no nvcc. Set CUDA_HOME'):
        op_build.plan_cuda({**force}, 'linux')
    with pytest.raises(op_build.BuildError, match='on Linux only'):
        op_build.plan_cuda({**force}, 'win32')


def test_default_architectures_are_those_supported_by_nvcc():
    assert op_build.choose_archs(None, (), {'80', '90', '87'}) == ['8.0', '9.0+PTX']
    assert op_build.choose_archs(None, ('8.6', '9.0'), {'86', '90'}) == ['8.6', '9.0+PTX']
    with pytest.raises(op_build.BuildError, match=r'knows none of 7\.5, .*: set TORCH_CUDA_ARCH_LIST'):
        op_build.choose_archs(None, (), {'50'})


@pytest.mark.parametrize('visible', [('12.0',), ()])
def test_architectures_unsupported_by_nvcc_raise(visible):
    wish = None if visible else '9.0;12.0a'
    with pytest.raises(op_build.BuildError, match=r'not compile for 12\.0.*, only for 90, 100\. Choose'):
        op_build.choose_archs(wish, visible, {'90', '100'})


def test_architectures_become_flags():
    chosen = op_build.choose_archs('8.0;9.0a 10.0+PTX', (), {'80', '90', '100'})
    assert op_build.arch_flags(chosen) == [
        '-gencode=arch=compute_80,code=sm_80',
        '-gencode=arch=compute_90a,code=sm_90a',
        '-gencode=arch=compute_100,code=sm_100',
        '-gencode=arch=compute_100,code=compute_100',
    ]
    with pytest.raises(op_build.BuildError, match=r"TORCH_CUDA_ARCH_LIST: 'Ampere' is not like 8\.0"):
        op_build.choose_archs('Ampere', (), {'80'})


def test_an_nvcc_that_lists_nothing_is_an_error():
    with pytest.raises(op_build.BuildError, match='false --list-gpu-arch lists no architecture'):
        op_build.known_archs('false')


def test_nvcc_gets_the_required_flags():
    commands = op_build.cuda_commands(op_build.CudaPlan('/cuda/bin/nvcc', ['9.0']), TORCH)
    compile_ = commands.compile_one('a.cu', 'a.o')
    assert compile_[0] == '/cuda/bin/nvcc'
    assert compile_[-3:] == ['-c', 'a.cu', '--output-file=a.o']  # `-oa.o` is an unknown option to nvcc
    assert {'-gencode=arch=compute_90,code=sm_90', '-DUSE_CUDA'} <= set(compile_)
    assert commands.link_all(['a.o'], '_C_cuda.so') == [
        '/cuda/bin/nvcc', '-shared', '-cudart', 'static', 'a.o', '--output-file=_C_cuda.so',
        '-L/torch/lib', '-ltorch_cpu',
    ]  # fmt: skip


def test_compiler_failure_quotes_the_first_error():
    script = 'echo "a.cpp:1: warning: odd"; echo "a.cpp:2: error: bad"; echo "a.cpp:3: error: worse"; exit 3'
    with pytest.raises(op_build.BuildError, match=r'^sh failed with status 3: a\.cpp:2: error: bad\.$'):
        op_build._run(['sh', '-c', script])
