"""The config that a training checkpoint carries, so that the checkpoint alone is enough to test or to predict.

mmengine keeps it as Python source in `meta['cfg']`. It is read as literals and may name registered components only:
a checkpoint of unknown origin cannot execute code by it (`Registry.get` would import whatever a dotted type names).
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ddetr import registry as ours
from ddetr.utils.errors import CheckpointError, ConfigError, first_line
from ddetr.utils.literals import literal_value
from ddetr.weights.checkpoint import HF_FILES

from .config import merge_options, registered_names

# What testing needs. Hooks, work directory and launcher are those of the command that tests.
KEPT = (
    'model', 'test_dataloader', 'test_evaluator', 'test_cfg', 'visualizer', 'log_processor', 'default_scope',
    'randomness',
)  # fmt: skip
SCOPES = (ours.SCOPE, ours.ALIAS, 'mmengine', 'mmcv')


def saved_config(
    content: Mapping[str, Any], path: str | Path, options: Mapping[str, Any] | None = None
) -> Config:
    """The part of a training checkpoint's config that testing needs.

    Args:
        content: From `read_checkpoint`.
        path: Where it was read from, for messages.
        options: See `load_config`.

    Raises:
        CheckpointError: The checkpoint has no config, one with components of the user's own, or a malicious one.
    """
    meta = content.get('meta')
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f'checkpoint {path} does not carry the config that it was trained with: give the config too.'
        )
    try:
        values = dict(_assignments(ast.parse(text)))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f'the config in checkpoint {path} is not made of plain values ({first_line(error)}): give the config too.'
        ) from error
    if values.get('custom_imports'):
        raise CheckpointError(
            f'checkpoint {path} was trained with modules of your own (custom_imports={values["custom_imports"]}), '
            'which a checkpoint is not trusted to import: give the config too.'
        )
    try:
        kept = {key: registered_only(values[key], key) for key in KEPT if key in values}
    except ConfigError as error:
        raise CheckpointError(
            f'the config in checkpoint {path} is refused: {error}; give the config too.'
        ) from error
    if 'model' not in kept:
        raise CheckpointError(f'the config in checkpoint {path} has no model: give the config too.')
    cfg = Config({**kept, 'default_scope': ours.SCOPE})
    merge_options(cfg, options or {}, path)
    return cfg


def find_checkpoint(path: str | Path) -> str:
    """A checkpoint's path; of a work directory, the best checkpoint, else the last.

    Raises:
        CheckpointError: The folder holds no checkpoint.
    """
    folder = Path(path).expanduser()
    if '://' in str(path) or not folder.is_dir() or any((folder / name).is_file() for name in HF_FILES):
        return str(path)
    files = sorted(folder.glob('[!.]*.pth'), key=lambda file: file.stat().st_mtime)
    best = [file for file in files if file.name.startswith('best_')]
    if not files:
        raise CheckpointError(f'{folder} is a folder without a checkpoint (.pth): name a checkpoint.')
    return str((best or files)[-1])


def _assignments(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, literal_value(value)
            case _:
                raise ValueError(f'line {statement.lineno} assigns no value')


def registered_only(value: Any, place: str) -> Any:
    """A config, found under the dotted key `place`, with its types' scopes left out.

    Raises:
        ConfigError: A type is not registered. Building it could import anything that it names.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(registered_only(item, f'{place}.{i}') for i, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    cleaned = {key: registered_only(item, f'{place}.{key}') for key, item in value.items()}
    if isinstance(kind := cleaned.get('type'), str):
        scope, dot, name = kind.partition('.')
        bare = name if dot and scope in SCOPES else kind
        if bare not in registered_names(place.split('.')[0]):
            raise ConfigError(f'{place}.type={kind!r} is not registered')
        cleaned['type'] = bare
    return cleaned
