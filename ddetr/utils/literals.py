"""Parse Python literals as used in config files, without executing anything."""

import ast
from typing import Any


def literal_value(node: ast.AST) -> Any:
    """Value of a parsed literal. `dict(...)` with keywords counts as a literal, a bare name as a word.

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
            # `**other` has no key
            return {literal_value(key or ast.Pass()): literal_value(value) for key, value in pairs}
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=pairs) if all(pair.arg for pair in pairs):
            return {pair.arg: literal_value(pair.value) for pair in pairs}
        case ast.Name(id=word):
            return parse_word(word)
    return ast.literal_eval(node)  # raises ValueError for what is no expression


def parse_word(text: str) -> Any:
    """Convert to a number, True, False or None, else keep the word, as mmengine's `--cfg-options` does."""
    from mmengine.config import DictAction

    return DictAction._parse_int_float_bool(text)
