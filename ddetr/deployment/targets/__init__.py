"""Export formats: one module each, imported on demand.

A module has `SUFFIX`; `write(module, example, options, path)`, which writes a `DeployedDetector`; and `annotate(path,
info)`, which writes the `ExportInfo` to the file's metadata. It may have `PACKAGES`, the optional packages that it and
its runtime need, and `HAS_RUNTIME = False` if ddetr cannot run its files.
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
    """Return the module of a target; InputError if it is unknown or its packages are missing."""
    if name not in TARGETS:
        known = f': there are {", ".join(TARGETS)}.'
        raise InputError(f'--to {name}: unknown target{did_you_mean(name, TARGETS, known)}')
    module = importlib.import_module(f'{__name__}.{TARGETS[name]}')
    require(*getattr(module, 'PACKAGES', ()))
    return module
