"""Sphinx extension: a NamedTuple's fields are described by the comments behind them, which give shapes and units."""

import importlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

ALIAS = 'Alias for field number'  # what Python itself writes


def describe_field(app: Sphinx, kind: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Replace Python's own docstring of a field by the comment in the class."""
    if not (lines and lines[0].startswith(ALIAS)):
        return
    path, _, field = name.rpartition('.')
    module, _, owner = path.rpartition('.')
    source = inspect.getsource(getattr(importlib.import_module(module), owner))
    comment = re.search(rf'^ +{field}:[^#\n]*#(.*(?:\n +#.*)*)', source, flags=re.MULTILINE)
    lines[:] = [re.sub(r'\n *#', '', comment[1]).strip()] if comment else ['']


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect('autodoc-process-docstring', describe_field)
    return {'parallel_read_safe': True}
