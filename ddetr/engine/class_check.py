"""Check before training that the detector and datasets agree on the classes."""

from typing import Any

from torch import nn

from ddetr.utils.errors import ConfigError


def check_classes(model: nn.Module, datasets: dict[str, Any]) -> None:
    """Compare the classes of a detector with those of its datasets (by config key), and the datasets with each other.

    Models without `num_classes` and datasets without class names are skipped.

    Raises:
        ConfigError: The numbers of classes differ, or two datasets order their classes differently.
    """
    metas = {key: getattr(dataset, 'metainfo', None) or {} for key, dataset in datasets.items()}
    named = {key: meta['classes'] for key, meta in metas.items() if meta.get('classes')}
    number = getattr(model, 'num_classes', None)
    for key, names in named.items():
        if number is not None and len(names) != number:
            raise ConfigError(
                f'{_config_key(model)}={number}, but the dataset of {key} has {len(names)} classes '
                f'({", ".join(list(names)[:5])}{", ..." if len(names) > 5 else ""}): set num_classes={len(names)}.'
            )
    for first, key in zip(named, list(named)[1:], strict=False):
        if list(named[key]) != list(named[first]):
            raise ConfigError(
                f'{first} and {key} have different classes or class orders ({list(named[first])[:5]}... and '
                f'{list(named[key])[:5]}...): set the same dataset.metainfo=dict(classes=...) in both.'
            )


def _config_key(model: nn.Module) -> str:
    """Config key that probably sets `num_classes`: that of the last module with the model's value."""
    modules, number = model.named_modules(), model.num_classes
    names = [name for name, module in modules if getattr(module, 'num_classes', None) == number]
    return '.'.join(['model', *filter(None, names[-1:]), 'num_classes'])
