"""Packages whose names are imported at first use, so that importing the package itself is cheap (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """The module-level `__getattr__` of a package.

    Type checkers do not see these names: the package also imports them under `if TYPE_CHECKING`.

    Args:
        package: Its `__name__`.
        modules: By the name of each submodule, the names that the package takes from it.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return getattr(import_module(f'{package}.{home[name]}'), name)

    return find
