"""What the doctor found, as records and as text for a terminal."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ddetr.datasets.coco_format import BoxXYXY
from ddetr.utils.tables import render_table

Severity = Literal['error', 'warning', 'note']
SEVERITIES: tuple[Severity, ...] = ('error', 'warning', 'note')
KEPT = 20  # examples of a fault that a report holds
WIDTH = 110  # characters of a line in the terminal


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


class ClassSummary(NamedTuple):
    """A class and its boxes."""

    name: str
    boxes: tuple[int, ...]  # in each split
    side_px: float  # median of the square roots of the boxes' areas; NaN without boxes


class SplitSummary(NamedTuple):
    """A split in numbers."""

    name: str
    format: str
    source: str
    images: int
    boxes: int


@dataclass(frozen=True)
class Report:
    """All faults of a dataset, errors first."""

    faults: tuple[Fault, ...]
    splits: tuple[SplitSummary, ...]
    classes: tuple[ClassSummary, ...]
    opened: int  # number of images that were opened

    def of(self, severity: Severity) -> list[Fault]:
        """The faults of one severity."""
        return [fault for fault in self.faults if fault.severity == severity]

    def headline(self) -> str:
        """The numbers of faults by severity in one line."""
        if not self.faults:
            return 'No faults found.'
        counts = [(len(self.of(severity)), severity) for severity in SEVERITIES]
        words = ', '.join(f'{n} {word}{"s" * (n != 1)}' for n, word in counts if n)
        return f'{words}, each with its number of occurrences:'

    def text(self, examples: int = 3) -> str:
        """The whole report for a terminal, with up to `examples` examples of each fault."""
        blocks = [self.summary(), self.headline()]
        blocks += [_fault_text(fault, examples) for fault in self.faults]
        if not self.opened:
            blocks.append(
                'Images were not opened: faults of the image files themselves are not in this report.'
            )
        return '\n\n'.join(blocks)

    def summary(self) -> str:
        """Tables of the splits and the classes."""
        splits = [[s.name, s.format, f'{s.images}', f'{s.boxes}', s.source] for s in self.splits]
        table = render_table(['split', 'format', 'images', 'boxes', 'read from'], splits, 'text')
        shown = sorted(self.classes, key=lambda row: -sum(row.boxes))
        rows = [[c.name, *map(str, c.boxes), f'{c.side_px:.0f}'] for c in shown[:20]]
        heads = ['class', *(f'{split.name} boxes' for split in self.splits), 'median side (pixels)']
        more = f'\n... and {len(shown) - 20} more classes' if len(shown) > 20 else ''
        return f'{table}\n\n{render_table(heads, rows, "text")}{more}'


def collect(examples: Iterable[Example]) -> tuple[int, tuple[Example, ...], frozenset[Path]]:
    """Count examples, keep the worst, in their order of appearance among equals, and all paths."""
    found = list(examples)
    worst = sorted(found, key=lambda example: -example.weight)[:KEPT]
    return len(found), tuple(worst), frozenset(p.path for example in found for p in example.pictures)


def _fault_text(fault: Fault, shown: int) -> str:
    lines = [f'{fault.severity.upper()}  {fault.name}: {fault.count}']
    lines += [f'  - {example.text}' for example in fault.examples[:shown]]
    if fault.count > shown:
        lines.append(f'  ... and {fault.count - shown} more')
    repaired = f' (--fix: {fault.fix})' if fault.fix else ''
    for head, words in (('Consequence', fault.consequence), ('Cure', fault.cure + repaired)):
        lines += textwrap.wrap(f'{head}: {words}', WIDTH, initial_indent='  ', subsequent_indent='    ')
    return '\n'.join(lines)
