"""Read config files and validate them before anything is built, so that typos are found within seconds."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch.utils.data
from mmengine import registry as engine
from mmengine.config import Config
from mmengine.config.utils import ConfigParsingError
from mmengine.registry import Registry

from ddetr import registry as ours
from ddetr.utils.errors import ConfigError, InputError, did_you_mean, first_line
from ddetr.utils.shipped_configs import find_config

# Registries of the components allowed under each top-level config key.
REGISTRIES: dict[str, tuple[Registry, ...]] = {
    'model': (ours.MODELS, ours.TASK_UTILS, engine.WEIGHT_INITIALIZERS),
    'train_dataloader': (ours.DATASETS, ours.TRANSFORMS, ours.DATA_SAMPLERS, engine.FUNCTIONS),
    'train_cfg': (ours.LOOPS,),
    'optim_wrapper': (ours.OPTIM_WRAPPERS, engine.OPTIMIZERS, engine.OPTIM_WRAPPER_CONSTRUCTORS),
    'param_scheduler': (engine.PARAM_SCHEDULERS,),
    'val_evaluator': (ours.METRICS, engine.EVALUATOR),
    'default_hooks': (ours.HOOKS, ours.MODELS, ours.TRANSFORMS),
    'visualizer': (ours.VISUALIZERS, engine.VISBACKENDS),
    'log_processor': (ours.LOG_PROCESSORS,),
}
_SAME = {
    'data_preprocessor': 'model', 'test_evaluator': 'val_evaluator', 'custom_hooks': 'default_hooks',
    'val_cfg': 'train_cfg', 'test_cfg': 'train_cfg',
    'val_dataloader': 'train_dataloader', 'test_dataloader': 'train_dataloader',
}  # fmt: skip
REGISTRIES |= {key: REGISTRIES[same] for key, same in _SAME.items()}

# Top-level keys that the Runner or ddetr reads directly from the config.
LOOKED_UP_KEYS = {
    'model_wrapper_cfg', 'sync_bn', 'find_unused_parameters', 'activation_checkpointing',
    'efficient_conv_bn_eval', 'compile', 'custom_imports', 'allow_partial', 'check_data', 'channels_last',
}  # fmt: skip

# Keys that builders remove before they call the constructor.
BUILDER_KEYS = {
    'optim_wrapper': {'constructor', 'paramwise_cfg', 'optimizer'},
    'param_scheduler': {'convert_to_iter_based'},
}
LOADER_KEYS = {'num_batch_per_epoch', 'disable_subprocess_warning', 'dataset'}


@cache
def read_keys() -> frozenset[str]:
    """Top-level config keys that are used: the Runner's parameters and `LOOKED_UP_KEYS`."""
    from mmengine.runner import Runner  # slow import

    return frozenset(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} | LOOKED_UP_KEYS


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a ddetr or MMDetection config file and apply `--cfg-options`.

    Args:
        path: Path of a `.py`, `.json` or `.yaml` config, or the name of a shipped one. Python configs are executed;
            modules in `custom_imports` may be in the same folder.
        options: Values by dotted key, such as `{'model.num_queries': 100, 'custom_hooks.0.interval': 5}`.

    Returns:
        The config, with `default_scope='ddetr'` (and `mmdet` as an alias) and a seed, 0 by default.

    Raises:
        ConfigError: The file is missing or unreadable, or an option names an unknown key.
    """
    path = find_config(path)
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # at the end, so that it does not shadow installed modules
    try:
        cfg = Config.fromfile(path)
    except (ConfigParsingError, SyntaxError, OSError, ImportError, NameError, KeyError, TypeError) as error:
        raise ConfigError(f'config {path} cannot be read: {first_line(error)}') from error
    merge_options(cfg, options or {}, path)
    changes: dict[str, Any] = {}
    if cfg.get('default_scope') in (None, ours.ALIAS):
        changes['default_scope'] = ours.SCOPE
    if cfg.get('randomness', {}).get('seed') is None:
        changes['randomness.seed'] = 0  # reproducible unless asked otherwise
    cfg.merge_from_dict(changes)
    return cfg


def merge_options(cfg: Config, options: Mapping[str, Any], path: str | Path) -> None:
    """Apply `--cfg-options` to the config read from `path`. Raise ConfigError for unknown keys."""
    _check_options(cfg, options)
    try:
        cfg.merge_from_dict(dict(options))
    except (KeyError, TypeError) as error:
        raise ConfigError(f'--cfg-options on {path}: {first_line(error)}') from error


def check_config(cfg: Config) -> None:
    """Check that every type is registered and accepts its keys, without building anything.

    Raises:
        ConfigError: A type or key is unknown. The message names the first one and the closest valid name.
    """
    for key, value in cfg.items():
        near = difflib.get_close_matches(key, read_keys(), n=1, cutoff=0.87)
        if key not in read_keys() and near and isinstance(value, (dict, list)):
            raise ConfigError(f'unknown config key {key!r}; did you mean {near[0]!r}?')
    places = [place for key, value in cfg.items() if key in REGISTRIES for place in _walk(key, value)]
    # check all types before any keys: an unregistered component is the more helpful error
    parts = [_part_at(*place) for place in places]
    for (path, value), part in zip(places, parts, strict=True):
        if path.endswith('_dataloader'):
            _check_keys(path, value, torch.utils.data.DataLoader, LOADER_KEYS)
        # norm_cfg, act_cfg, init_cfg, ... are not checked: builders of mmcv and mmengine add keys of their own
        if isinstance(ema := value.get('ema_type'), str) and ours.MODELS.get(ema) is None:
            hint = did_you_mean(
                ema, {name for name in _names(ours.MODELS) if 'EMA' in name or 'Averag' in name}
            )
            raise ConfigError(f'{path}.ema_type={ema!r} is not registered{hint}')
        if part is not None and (not path.endswith('_cfg') or '.' not in path):
            _check_keys(path, value, part, BUILDER_KEYS.get(path.split('.')[0], set()))


def dataset_of(loader: Mapping[str, Any]) -> Mapping[str, Any]:
    """Innermost dataset config of a data loader, without wrappers; the first of concatenated datasets."""
    dataset = loader.get('dataset', {})
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset


def registered_names(key: str) -> set[str]:
    """All types that are valid under a top-level config key."""
    return set().union(*map(_names, REGISTRIES.get(key, ())))


@contextmanager
def explain_build_errors() -> Iterator[None]:
    """Convert constructor errors (unknown or missing argument, unknown type) into a ConfigError."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:  # the constructor's own message names the key
        raise ConfigError(first_line(error)) from error
    except (TypeError, KeyError) as error:
        line = first_line(error)
        if missing := re.search(r'(\w+)\.__init__\(\) missing .*?argument.*?: (.*)', line):
            raise ConfigError(f'{missing[1]} needs {missing[2]}: add it to the config.') from error
        if 'unexpected keyword argument' in line:
            raise ConfigError(f'{line}: correct or remove this key in the config.') from error
        if 'is not in the' not in line:
            raise
        sentence = line.split('. Please check')[0]
        raise ConfigError(f'{sentence}: correct this type in the config.') from error


def _part_at(path: str, value: Mapping[str, Any]) -> Any:
    """Class or function named by the `type` of a config dict; None without a type."""
    kind = value.get('type')
    if not isinstance(kind, str):
        return kind
    registries = REGISTRIES[path.split('.')[0]]
    found = next((part for registry in registries if (part := registry.get(kind)) is not None), None)
    if found is None:
        hint = did_you_mean(kind, registered_names(path.split('.')[0]))
        raise ConfigError(f'{path}.type={kind!r} is not registered{hint}')
    return found


def _check_keys(path: str, value: Mapping[str, Any], kind: Any, extra: set[str]) -> None:
    known = _parameters(kind)
    for key in value:
        if known is not None and key not in known | extra | {'type', '_scope_', 'init_cfg'}:
            raise ConfigError(f'{path}.{key}: {kind.__name__} has no such key{did_you_mean(key, known)}')


def _check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options that nothing reads, which would silently have no effect."""
    for option in options:
        top, *rest = option.split('.')
        if top in cfg and top not in read_keys():
            raise ConfigError(
                f'--cfg-options {option}: {top} is only a variable of the config file. Override the keys that use it '
                'instead.'
            )
        if top not in read_keys():
            raise ConfigError(f'--cfg-options {option}: unknown key {top!r}{did_you_mean(top, read_keys())}')
        inner, path = cfg.get(top), top
        for key in rest:
            if isinstance(inner, (list, tuple)) and key.isdigit():
                if int(key) >= len(inner):
                    raise ConfigError(
                        f'--cfg-options {option}: index out of range, {path} has {len(inner)} items (from 0).'
                    )
                inner = inner[int(key)]
            elif isinstance(inner, Mapping):
                known = key in inner or 'type' in inner
                if not known and (typo := difflib.get_close_matches(key, inner, 1, 0.75)):
                    raise ConfigError(
                        f'--cfg-options {option}: {path} has no {key!r}; did you mean {typo[0]!r}?'
                    )
                inner = inner.get(key)
            path = f'{path}.{key}'


def _walk(path: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every dict in `value`, including itself, with its dotted path."""
    if isinstance(value, Mapping):
        yield path, value
    elif not isinstance(value, (list, tuple)):
        return
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _walk(f'{path}.{key}', inner)


def _parameters(kind: Any) -> set[str] | None:
    """Keyword parameters of a component, or None if it accepts any.

    A constructor with `**kwargs` also accepts the parameters of the next constructor in the MRO.
    """
    constructors = [kind]
    if inspect.isclass(kind):
        constructors = [vars(cls)['__init__'] for cls in kind.__mro__ if '__init__' in vars(cls)]
    names: set[str] = set()
    for constructor in constructors:
        try:
            parameters = inspect.signature(constructor).parameters.values()
        except ValueError:  # C function without a signature
            return None
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return names
    return None


def _names(registry: Registry | None) -> set[str]:
    """All types that a registry can build, including those of its parent registries."""
    if registry is None:
        return set()
    registry.import_from_location()
    return {*registry.module_dict} | _names(registry.parent)
