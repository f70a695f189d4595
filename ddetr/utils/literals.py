"""Parse the Python literals of config files without executing code."""

import ast
from typing import Any


def literal_value(node: ast.AST) -> Any:
    """Value of a parsed literal. `dict(...)` with keywords counts as a literal, a bare name as a string.

    Raises:
        ValueError, TypeError: The expression is not a literal.
    """
    match node:
        case ast.List(elts=items):
            return [literal_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(literal_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            # `**other` has no key; ast.Pass makes it raise
            return {literal_value(key or ast.Pass()): literal_value(value) for key, value in pairs}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=pairs) if all(pair.arg for pair in pairs):
            return {pair.arg: literal_value(pair.value) for pair in pairs}
        case ast.Name(id=word):
            return parse_word(word)
    return ast.literal_eval(node)  # raises ValueError for anything but a literal


def parse_word(text: str) -> Any:
    """Convert `text` to a number, True, False or None if possible, as mmengine's `--cfg-options` does."""
    from mmengine.config import DictAction

    return DictAction._parse_int_float_bool(text)
