"""Do the detector and its data sets speak of the same classes? Asked before training, where the answer is cheap."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ddetr.utils.errors import ConfigError


def check_classes(model: nn.Module, datasets: dict[str, Any]) -> None:
    """Compare the number of classes of a detector's heads with its data sets', and these with one another.

    Args:
        model: heads without `num_classes`, and those that only tell objects from background, are passed over.
        datasets: by the config key of their loader; those without class names are passed over.

    Raises:
        ConfigError: a label would have no logit, a logit no class, or two data sets number classes differently.
    """
    classes = {key: _classes_of(dataset) for key, dataset in datasets.items()}
    named = {key: names for key, names in classes.items() if names}
    for name, head in model.named_modules():
        number = getattr(head, 'num_classes', None)
        if not name or not isinstance(number, int) or name.endswith('rpn_head'):
            continue
        for key, names in named.items():
            if len(names) != number:
                raise ConfigError(
                    f'model.{name}.num_classes={number}, but the data set of {key} has {len(names)} classes '
                    f'({", ".join(list(names)[:5])}{", ..." if len(names) > 5 else ""}): set num_classes={len(names)}.'
                )
    for first, key in zip(named, list(named)[1:], strict=False):
        if list(named[key]) != list(named[first]):
            raise ConfigError(
                f'{first} and {key} number their classes differently ({list(named[first])[:5]}... and '
                f'{list(named[key])[:5]}...): give both the same dataset.metainfo=dict(classes=...).'
            )


def _classes_of(dataset: Any) -> Sequence[str] | None:
    return (getattr(dataset, 'metainfo', None) or {}).get('classes')
