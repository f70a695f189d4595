"""Charts as inline SVG. Colours are the page's CSS variables, so that one chart suits light and dark.

`Markup.format` escapes every text that comes from data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 10, 36
LABEL_WIDTH = 106  # of bars
MAX_LABEL = 18  # characters


class Line(NamedTuple):
    """One curve of a line chart."""

    name: str
    color: str  # a CSS variable
    x: np.ndarray
    y: np.ndarray
    dash: str = ''
    notes: Sequence[str] | None = None  # of each point, which is then marked


def svg(width: float, height: float, content: Markup, title: str, css: str = 'chart') -> Markup:
    """A picture that scales with its place on the page."""
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" width="{:g}" role="img" aria-label="{}">{}</svg>'
    ).format(css, width, height, width, title, content)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, diagonal: bool = False) -> Markup:
    """Curves over the unit square, with their names below; `diagonal` marks where y would equal x."""
    parts = [_frame(x_label, y_label)]
    if diagonal:
        parts.append(_path([0, 1], [0, 1], 'var(--muted)', '2 4'))
    for line in lines:
        valid = np.isfinite(line.y)
        parts.append(_path(line.x[valid], line.y[valid], line.color, line.dash))
        for x, y, note in zip(line.x, line.y, line.notes or (), strict=line.notes is not None):
            if np.isfinite(y):
                parts.append(
                    Markup(
                        '<circle cx="{:.1f}" cy="{:.1f}" r="4" style="fill:var({})"><title>{}</title></circle>'
                    ).format(_x(x), _y(y), line.color, note)
                )
    chart = svg(WIDTH, HEIGHT, Markup().join(parts), f'{y_label} by {x_label}')
    return chart + legend([(line.name, line.color, line.dash) for line in lines])


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """(name, CSS variable, dash pattern) of each curve."""
    items = [
        Markup(
            '<span><svg class="key" viewBox="0 0 22 8" width="22"><path d="M1 4H21" '
            'style="stroke:var({});stroke-dasharray:{}"/></svg>{}</span>'
        ).format(color, dash or 'none', name)
        for name, color, dash in entries
    ]
    return Markup('<p class="legend">{}</p>').format(Markup().join(items))


def bar_chart(
    labels: Sequence[str], values: Sequence[Sequence[float]], colors: Sequence[Sequence[str]]
) -> Markup:
    """Horizontal bars, for each label one for each run; a value below 0 stands for nothing to measure.

    Args:
        labels: R of them.
        values: R x runs.
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
                LABEL_WIDTH - 8, y + runs * thickness / 2 + 4, shorten(label), label
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
    """Counts, shaded by their share of the row; the last row and column stand apart."""
    cell = 34 if len(columns) <= 12 else 24
    left, top = LABEL_WIDTH + 6, 24 + round(4.6 * max(len(shorten(name)) for name in columns))
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    parts = []
    for i, name in enumerate(rows):
        y = top + i * cell + (6 if i == len(rows) - 1 else 0)
        label = Markup('<text x="{}" y="{:.1f}" class="end">{}<title>{}</title></text>')
        parts.append(label.format(left - 6, y + cell / 2 + 4, shorten(name), name))
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
                middle, top - 8, shorten(name), name
            )
        )
    size = left + len(columns) * cell + 60, top + len(rows) * cell + 10
    return svg(*size, Markup().join(parts), 'confusion matrix', 'chart wide')


def number(value: float) -> str:
    """Three digits as pycocotools prints them; a dash where there is nothing to measure."""
    return f'{value:.3f}' if value >= 0 else '-'


def shorten(text: str, limit: int = MAX_LABEL) -> str:
    """A name that fits its place."""
    return text if len(text) <= limit else text[: limit - 1] + '…'


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _path(
    xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray, color: str, dash: str
) -> Markup:
    points = ' '.join(f'{_x(x):.1f},{_y(y):.1f}' for x, y in zip(xs, ys, strict=True))
    color = color if color.startswith('var') else f'var({color})'
    return Markup('<polyline points="{}" style="stroke:{};stroke-dasharray:{}"/>').format(
        points, color, dash or 'none'
    )


def _frame(x_label: str, y_label: str) -> Markup:
    """Grid, numbers and names of both axes, 0 to 1."""
    bottom, parts = HEIGHT - BOTTOM, []
    for tick in np.linspace(0, 1, 6):
        grid = Markup('<path class="grid" d="M{0:.1f} {2}V{3}M{4} {1:.1f}H{5}"/>')
        parts.append(grid.format(_x(tick), _y(tick), TOP, bottom, LEFT, WIDTH - RIGHT))
        text = Markup('<text x="{:.1f}" y="{:.1f}" class="tick {}">{:.1f}</text>')
        parts.append(text.format(_x(tick), bottom + 14, 'mid', tick))
        parts.append(text.format(LEFT - 5, _y(tick) + 4, 'end', tick))
    below = Markup('<text x="{}" y="{}" class="mid">{}</text>')
    beside = Markup('<text transform="translate(11 {}) rotate(-90)" class="mid">{}</text>')
    parts.append(below.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_label))
    parts.append(beside.format((TOP + bottom) / 2, y_label))
    return Markup().join(parts)
