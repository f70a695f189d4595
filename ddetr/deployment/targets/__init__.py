"""Formats that detectors are exported to: one module each, imported when it is asked for.

A module has `SUFFIX`; `write(module, example, options, path)`, which writes a `DeployedDetector`; `annotate(path,
info)`, which puts the `ExportInfo` into the file's metadata; and, where they apply, `PACKAGES`, the optional ones that
it and its runtime need, and `HAS_RUNTIME = False`, if nothing here can run its files.
"""

import importlib
from types import ModuleType

from ddetr.deployment.extras import require
from ddetr.utils.errors import InputError, did_you_mean

TARGETS = {
    'onnx': 'onnx',
    'torch-export': 'torch_export',
    'aoti': 'aoti',
    'openvino': 'openvino',
    'tensorrt': 'tensorrt',
}


def target_module(name: str) -> ModuleType:
    """A target's module. InputError for an unknown one, or one whose packages are missing."""
    if name not in TARGETS:
        known = f': there are {", ".join(TARGETS)}.'
        raise InputError(f'--to {name} is no target{did_you_mean(name, TARGETS, known)}')
    module = importlib.import_module(f'{__name__}.{TARGETS[name]}')
    require(*getattr(module, 'PACKAGES', ()))
    return module
