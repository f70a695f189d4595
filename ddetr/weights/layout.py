"""Facts about a config that follow from its weights."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Facts on which config and checkpoint must agree, derived from names and shapes.

    A family subclasses it with its own fields. Fields with `compare=False` are informative only. The base class
    stands for a model of unknown family.
    """

    num_classes: int = 0  # 0: unknown, or none

    def __str__(self) -> str:
        return 'a model of its own' + (f', {self.num_classes} classes' if self.num_classes else '')

    def comparable(self, ignore_classes: bool = False) -> 'Layout':
        """Fields that must be equal in file and model; fine-tuning ignores the classes."""
        return replace(self, num_classes=0) if ignore_classes else self

    def fitting_configs(self) -> tuple[str, ...]:
        """Our configs that build such a model; several if the weights do not distinguish them."""
        return ()

    def config_changes(self) -> dict[str, Any]:
        """Changes to the fitting configs that this model needs, by dotted key."""
        return {}

    def suggestion(self) -> str:
        """Text with the fitting configs and the changes to them; '' if there is none."""
        changes = ' '.join(f'{key}={value}' for key, value in self.config_changes().items())
        configs = ' or '.join(self.fitting_configs())
        return f'{configs} with {changes}' if configs and changes else configs


def count(names: Iterable[str], prefix: str) -> int:
    """Length of the module list `prefix`: the number of distinct indices after it."""
    return len({match[1] for name in names if (match := re.match(re.escape(prefix) + r'(\d+)\.', name))})
