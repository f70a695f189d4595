"""Records of the faults found."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ddetr.datasets.formats.records import BoxXYXY

Severity = Literal['error', 'warning', 'note']
SEVERITIES: tuple[Severity, ...] = ('error', 'warning', 'note')
KEPT = 20  # maximum number of examples of a fault in a report


class Picture(NamedTuple):
    """An image that shows a fault, and the boxes concerned."""

    path: Path
    boxes: tuple[BoxXYXY, ...] = ()  # x1 y1 x2 y2 in pixels, possibly outside the image or NaN


class Example(NamedTuple):
    """One occurrence of a fault."""

    text: str  # file, record and numbers
    pictures: tuple[Picture, ...] = ()
    weight: float = 0.0  # examples with the largest weight are kept


@dataclass(frozen=True)
class Fault:
    """One kind of fault and its occurrences in a dataset."""

    name: str
    severity: Severity
    count: int
    examples: tuple[Example, ...]  # the worst, at most KEPT
    consequence: str
    cure: str
    fix: str  # what `--fix` does about it; empty if it needs a human decision
    paths: frozenset[Path]  # all images concerned, if any
    spoils: bool = False  # a large number of these makes training useless


def collect(examples: Iterable[Example]) -> tuple[int, tuple[Example, ...], frozenset[Path]]:
    """Count examples, keep the worst (ties in order of appearance), and collect all paths."""
    found = list(examples)
    worst = sorted(found, key=lambda example: -example.weight)[:KEPT]
    return len(found), tuple(worst), frozenset(p.path for example in found for p in example.pictures)
