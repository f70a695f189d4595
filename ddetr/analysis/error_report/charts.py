"""Bar charts and heat maps as inline SVG; line charts are in `ddetr.visualization.charts`.

`Markup.format` escapes all text that comes from data.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ddetr.visualization.charts import WIDTH, svg
from ddetr.visualization.labels import shorten

LABEL_WIDTH = 106  # of bars
MAX_LABEL = 18  # characters


def bar_chart(
    labels: Sequence[str], values: Sequence[Sequence[float]], colors: Sequence[Sequence[str]]
) -> Markup:
    """Draw horizontal bars, one per label and run; negative values mean undefined.

    Args:
        labels: R labels.
        values: Values, R x runs.
        colors: CSS variables, R x runs.
    """
    top = max((v for row in values for v in row), default=0) or 1
    runs = len(values[0]) if values else 1
    thickness = 14 if runs == 1 else 11
    step = runs * thickness + 12
    parts = []
    for i, (label, row, colours) in enumerate(zip(labels, values, colors, strict=True)):
        y = i * step + 4
        parts.append(
            Markup('<text x="{}" y="{:.1f}" class="end">{}<title>{}</title></text>').format(
                LABEL_WIDTH - 8, y + runs * thickness / 2 + 4, shorten(label, MAX_LABEL), label
            )
        )
        for j, (value, color) in enumerate(zip(row, colours, strict=True)):
            length = max(value, 0) / top * (WIDTH - LABEL_WIDTH - 52)
            parts.append(
                Markup(
                    '<rect x="{}" y="{:.1f}" width="{:.1f}" height="{}" rx="2" style="fill:var({})"/>'
                    '<text x="{:.1f}" y="{:.1f}" class="value">{}</text>'
                ).format(
                    LABEL_WIDTH, y + j * thickness, max(length, 1.5), thickness - 2, color,
                    LABEL_WIDTH + length + 6, y + j * thickness + thickness / 2 + 3, number(value),
                )
            )  # fmt: skip
    return svg(WIDTH, len(labels) * step + 4, Markup().join(parts), 'bars')


def heatmap(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> Markup:
    """Draw counts shaded by their fraction of the row; the last row and column are set apart."""
    cell = 34 if len(columns) <= 12 else 24
    left, top = LABEL_WIDTH + 6, 24 + round(4.6 * max(len(shorten(name, MAX_LABEL)) for name in columns))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    parts = []
    for i, name in enumerate(rows):
        y = top + i * cell + (6 if i == len(rows) - 1 else 0)
        label = Markup('<text x="{}" y="{:.1f}" class="end">{}<title>{}</title></text>')
        parts.append(label.format(left - 6, y + cell / 2 + 4, shorten(name, MAX_LABEL), name))
        for j, column in enumerate(columns):
            x = left + j * cell + (6 if j == len(columns) - 1 else 0)
            right = i == j
            parts.append(
                Markup(
                    '<rect x="{}" y="{}" width="{}" height="{}" rx="2" style="fill:var({});fill-opacity:{:.3f}">'
                    '<title>{} detected as {}: {}</title></rect>'
                ).format(
                    x, y, cell - 2, cell - 2, '--found' if right else '--wrong',
                    0.06 + 0.74 * shares[i, j], name, column, matrix[i, j],
                )
            )  # fmt: skip
            if matrix[i, j]:
                parts.append(
                    Markup('<text x="{}" y="{:.1f}" class="cell">{}</text>').format(
                        x + cell / 2 - 1, y + cell / 2 + 3, matrix[i, j]
                    )
                )
    for j, name in enumerate(columns):
        middle = left + j * cell + cell / 2 + (6 if j == len(columns) - 1 else 0)
        parts.append(
            Markup('<text transform="translate({:.1f} {}) rotate(-50)">{}<title>{}</title></text>').format(
                middle, top - 8, shorten(name, MAX_LABEL), name
            )
        )
    size = left + len(columns) * cell + 60, top + len(rows) * cell + 10
    return svg(*size, Markup().join(parts), 'confusion matrix', 'chart wide')


def number(value: float) -> str:
    """Format a number with three digits, like pycocotools; a dash if undefined."""
    return f'{value:.3f}' if value >= 0 else '-'
