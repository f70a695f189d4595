"""Optional packages of deployment."""

import importlib

from ddetr.utils.errors import InputError


def require(*modules: str) -> None:
    """Import optional packages; InputError names the missing one and the extra to install."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            package = module.partition('.')[0]
            extra = 'openvino' if package in ('openvino', 'nncf') else 'export'
            raise InputError(f'{package} is not installed: pip install "ddetr[{extra}]".') from error
