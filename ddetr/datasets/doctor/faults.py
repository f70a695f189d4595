"""The records of what the doctor found."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ddetr.datasets.formats.records import BoxXYXY

Severity = Literal['error', 'warning', 'note']
SEVERITIES: tuple[Severity, ...] = ('error', 'warning', 'note')
KEPT = 20  # examples of a fault that a report holds


class Picture(NamedTuple):
    """An image that shows a fault, and where in it."""

    path: Path
    boxes: tuple[BoxXYXY, ...] = ()  # x1 y1 x2 y2 in pixels, possibly outside the image or NaN


class Example(NamedTuple):
    """One occurrence of a fault."""

    text: str  # file, record and numbers
    pictures: tuple[Picture, ...] = ()
    weight: float = 0.0  # the heaviest examples of a fault are kept


@dataclass(frozen=True)
class Fault:
    """One kind of fault, with all that a dataset has of it."""

    name: str
    severity: Severity
    count: int
    examples: tuple[Example, ...]  # the worst, at most KEPT
    consequence: str
    cure: str
    fix: str  # what `--fix` does about it; empty where a person has to decide
    paths: frozenset[Path]  # all images concerned, where images are
    spoils: bool = False  # many of these make a training worthless


def collect(examples: Iterable[Example]) -> tuple[int, tuple[Example, ...], frozenset[Path]]:
    """Count examples, keep the worst, in their order of appearance among equals, and all paths."""
    found = list(examples)
    worst = sorted(found, key=lambda example: -example.weight)[:KEPT]
    return len(found), tuple(worst), frozenset(p.path for example in found for p in example.pictures)
