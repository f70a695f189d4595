"""Lazy imports of package members (PEP 562), so that importing the package itself is cheap."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """Create a module-level `__getattr__` for a package.

    Type checkers do not see these names, so the package also imports them under `if TYPE_CHECKING`.

    Args:
        package: `__name__` of the package.
        modules: Exported names by submodule.
    """
    home = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in home:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return getattr(import_module(f'{package}.{home[name]}'), name)

    return find
