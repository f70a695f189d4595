"""What a set of weights shows of the config that it belongs to."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Layout:
    """The facts that a config and a checkpoint must agree on, read off names and shapes.

    A family subclasses it with its own fields. Fields with `compare=False` are known but need not agree. The base class
    stands for a model of no known family.
    """

    num_classes: int = 0  # 0: unknown, or none

    def __str__(self) -> str:
        return 'a model of its own' + (f', {self.num_classes} classes' if self.num_classes else '')

    def comparable(self, ignore_classes: bool = False) -> 'Layout':
        """What must be equal between file and model; fine-tuning ignores the classes."""
        return replace(self, num_classes=0) if ignore_classes else self

    def fitting_configs(self) -> tuple[str, ...]:
        """Our configs that build such a model; several where weights do not tell them apart."""
        return ()

    def config_changes(self) -> dict[str, Any]:
        """What to set in the fitting configs where this model differs from them, by dotted key."""
        return {}

    def suggestion(self) -> str:
        """The fitting configs and the changes to them, in words; '' without one."""
        changes = ' '.join(f'{key}={value}' for key, value in self.config_changes().items())
        configs = ' or '.join(self.fitting_configs())
        return f'{configs} with {changes}' if configs and changes else configs


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in the names: the length of that list of modules."""
    return len({match[1] for name in names if (match := re.match(re.escape(prefix) + r'(\d+)\.', name))})
