"""Text tables as aligned columns, Markdown or CSV."""

import csv
import io
from collections.abc import Sequence

FORMATS = ('text', 'markdown', 'csv')


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Render a table in one of `FORMATS`, with the first column left-aligned and the others right-aligned."""
    if style == 'csv':
        out = io.StringIO()
        csv.writer(out, lineterminator='\n').writerows([header, *rows])
        return out.getvalue().rstrip('\n')
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]  # rjust(cell, width)
        for line in (header, *rows)
    ]
    if style == 'text':
        return '\n'.join('  '.join(line).rstrip() for line in lines)
    rule = ['-' * width if not i else '-' * max(width - 1, 2) + ':' for i, width in enumerate(widths)]
    return '\n'.join(f'| {" | ".join(line)} |' for line in [lines[0], rule, *lines[1:]])
