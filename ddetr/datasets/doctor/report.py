"""Report on a dataset, and its text form for the terminal."""

import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

from ddetr.utils.tables import render_table

from .evidence import Evidence
from .faults import SEVERITIES, Fault, Severity

WIDTH = 110  # line width in the terminal


class ClassSummary(NamedTuple):
    """A class and its boxes."""

    name: str
    boxes: tuple[int, ...]  # per split
    side_px: float  # median of the square roots of box areas; NaN without boxes


class SplitSummary(NamedTuple):
    """Statistics of a split."""

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
    evidence: Evidence = field(repr=False)  # input of the checks: records, images
    notes: tuple[str, ...] = ()  # decisions made when the dataset was read

    @property
    def opened(self) -> int:
        """The number of images that were opened."""
        return len(self.evidence.facts)

    def of(self, severity: Severity) -> list[Fault]:
        """The faults of one severity."""
        return [fault for fault in self.faults if fault.severity == severity]

    def headline(self) -> str:
        """Return the number of faults by severity in one line."""
        if not self.faults:
            return 'No faults found.'
        counts = [(len(self.of(severity)), severity) for severity in SEVERITIES]
        words = ', '.join(f'{n} {word}{"s" * (n != 1)}' for n, word in counts if n)
        return f'{words}, each with its number of occurrences:'

    def text(self, examples: int = 3) -> str:
        """Format the report for the terminal, with up to `examples` examples of each fault."""
        blocks = [*self.notes, self.summary(), self.headline()]
        blocks += [_fault_text(fault, examples) for fault in self.faults]
        if not self.opened:
            blocks.append(
                'Images were not opened: faults of the image files themselves are not in this report.'
            )
        return '\n\n'.join(blocks)

    def summary(self) -> str:
        """Format tables of the splits and the classes."""
        splits = [[s.name, s.format, f'{s.images}', f'{s.boxes}', s.source] for s in self.splits]
        table = render_table(['split', 'format', 'images', 'boxes', 'read from'], splits, 'text')
        shown = sorted(self.classes, key=lambda row: -sum(row.boxes))
        rows = [[c.name, *map(str, c.boxes), f'{c.side_px:.0f}'] for c in shown[:20]]
        heads = ['class', *(f'{split.name} boxes' for split in self.splits), 'median side (pixels)']
        more = f'\n... and {len(shown) - 20} more classes' if len(shown) > 20 else ''
        return f'{table}\n\n{render_table(heads, rows, "text")}{more}'


def _fault_text(fault: Fault, shown: int) -> str:
    lines = [f'{fault.severity.upper()}  {fault.name}: {fault.count}']
    lines += [f'  - {example.text}' for example in fault.examples[:shown]]
    if fault.count > shown:
        lines.append(f'  ... and {fault.count - shown} more')
    repaired = f' (--fix: {fault.fix})' if fault.fix else ''
    for head, words in (('Consequence', fault.consequence), ('Cure', fault.cure + repaired)):
        lines += textwrap.wrap(f'{head}: {words}', WIDTH, initial_indent='  ', subsequent_indent='    ')
    return '\n'.join(lines)
