"""Properties of a model that can be inferred from its weights."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Properties on which config and checkpoint must agree, inferred from names and shapes.

    Each family adds its own fields in a subclass. Fields with `compare=False` are informative only. The base class
    describes models of unknown families.
    """

    num_classes: int = 0  # 0: unknown, or none

    def __str__(self) -> str:
        return 'a custom model' + (f', {self.num_classes} classes' if self.num_classes else '')

    def comparable(self, ignore_classes: bool = False) -> 'Layout':
        """Layout with only the fields that must match between file and model; fine-tuning ignores the classes."""
        return replace(self, num_classes=0) if ignore_classes else self

    def fitting_configs(self) -> tuple[str, ...]:
        """Shipped configs that match the model; several if the weights do not distinguish them."""
        return ()

    def config_changes(self) -> dict[str, Any]:
        """Overrides that the matching configs need for this model, by dotted key."""
        return {}

    def suggestion(self) -> str:
        """Text that names the matching configs and overrides; '' if there are none."""
        changes = ' '.join(f'{key}={value}' for key, value in self.config_changes().items())
        configs = ' or '.join(self.fitting_configs())
        return f'{configs} with {changes}' if configs and changes else configs


def count(names: Iterable[str], prefix: str) -> int:
    """Length of the module list `prefix`: the number of distinct indices after it."""
    return len({match[1] for name in names if (match := re.match(re.escape(prefix) + r'(\d+)\.', name))})
