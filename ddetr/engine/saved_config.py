"""Read the config stored in a training checkpoint, so that a checkpoint alone suffices for testing and inference.

mmengine stores it as Python source in `meta['cfg']`. It is parsed as literals and may use only registered components,
so that an untrusted checkpoint cannot execute code (`Registry.get` would import any dotted type).
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

LAST = 'last_checkpoint'  # file in a work directory that names the checkpoint to resume from, as in mmengine

# Keys needed for testing. Hooks, work directory and launcher are set by the test command.
KEPT = (
    'model', 'test_dataloader', 'test_evaluator', 'test_cfg', 'visualizer', 'log_processor', 'default_scope',
    'randomness',
)  # fmt: skip
SCOPES = (ours.SCOPE, ours.ALIAS, 'mmengine', 'mmcv')


def saved_config(
    content: Mapping[str, Any], path: str | Path, options: Mapping[str, Any] | None = None
) -> Config:
    """Extract the part of a training checkpoint's config that is needed for testing.

    Args:
        content: Result of `read_checkpoint`.
        path: Path of the checkpoint, for error messages.
        options: See `load_config`.

    Raises:
        CheckpointError: The checkpoint has no config, or the config is malformed, needs custom modules, or uses types
            that are not registered.
    """
    meta = content.get('meta')
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        raise CheckpointError(
            f'checkpoint {path} does not contain its training config: pass the config as well.'
        )
    try:
        values = dict(_assignments(ast.parse(text)))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f'the config in checkpoint {path} is not a plain literal ({first_line(error)}): pass the config as well.'
        ) from error
    if values.get('custom_imports'):
        raise CheckpointError(
            f'checkpoint {path} was trained with custom modules (custom_imports={values["custom_imports"]}), which '
            'are not imported from a checkpoint for security: pass the config as well.'
        )
    try:
        kept = {key: registered_only(values[key], key) for key in KEPT if key in values}
    except ConfigError as error:
        raise CheckpointError(
            f'the config in checkpoint {path} cannot be used: {error}. Pass the config as well.'
        ) from error
    if 'model' not in kept:
        raise CheckpointError(f'the config in checkpoint {path} has no model: pass the config as well.')
    cfg = Config({**kept, 'default_scope': ours.SCOPE})
    merge_options(cfg, options or {}, path)
    return cfg


def find_checkpoint(path: str | Path) -> str:
    """Path of a checkpoint; for a work directory, its best checkpoint or, if there is none, the last one.

    Raises:
        CheckpointError: The folder contains no checkpoint.
    """
    folder = Path(path).expanduser()
    if '://' in str(path) or not folder.is_dir() or any((folder / name).is_file() for name in HF_FILES):
        return str(path)
    files = sorted(folder.glob('[!.]*.pth'), key=lambda file: file.stat().st_mtime)
    best = [file for file in files if file.name.startswith('best_')]
    if not files:
        raise CheckpointError(f'folder {folder} contains no checkpoint (.pth): pass a checkpoint.')
    return str((best or files)[-1])


def _assignments(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, literal_value(value)
            case _:
                raise ValueError(f'line {statement.lineno} is not an assignment')


def registered_only(value: Any, place: str) -> Any:
    """Remove the scopes of all types in a config and check that the types are registered.

    Args:
        value: Config, or a part of one.
        place: Its dotted key.

    Raises:
        ConfigError: A type is not registered; building it could import arbitrary modules.
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
