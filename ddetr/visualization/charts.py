"""Line charts as inline SVG. Colours are CSS variables of the page, so charts work in light and dark mode.

`Markup.format` escapes all text that comes from data.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 36
LOG_RANGE = 30  # ratio of largest to smallest positive value from which the scale is logarithmic


class Line(NamedTuple):
    """One curve of a line chart."""

    name: str
    color: str  # CSS variable
    x: np.ndarray
    y: np.ndarray
    dash: str = ''
    notes: Sequence[str] | None = None  # tooltip of each point; if given, points are marked


class Axis(NamedTuple):
    """Axis with name and limits; the scale may be logarithmic if the limits are positive."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def share(self, value: float) -> float:
        """Relative position of a value between the limits, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = (math.log10(number) for number in (low, high, max(value, low)))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Return about five round numbers between the limits."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 3 else (1,)
            ticks = [step * 10.0**decade for decade in decades for step in steps]
            ticks = ticks[:: max(1, len(ticks) // 6)]
        else:
            step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2.5))
            step = next(step * m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 6)
            ticks = [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        slack = 1e-9 * self.high
        return [float(f'{tick:.6g}') for tick in ticks if self.low - slack <= tick <= self.high + slack]


def axis_for(name: str, values: np.ndarray, from_zero: bool = False) -> Axis:
    """Return an axis that covers all finite `values`; logarithmic if they are positive and span a wide range."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if not from_zero and low > 0 and high > LOG_RANGE * low:
        return Axis(f'{name} (log scale)', low / 1.1, high * 1.1, log=True)
    low = min(low, 0.0) if from_zero else low
    margin = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(name, low if from_zero else low - margin, high + margin)


def svg(width: float, height: float, content: Markup, title: str, css: str = 'chart') -> Markup:
    """Return an SVG picture that scales with the page layout."""
    return Markup(
        '<svg class="{}" viewBox="0 0 {:g} {:g}" width="{:g}" role="img" aria-label="{}">{}</svg>'
    ).format(css, width, height, width, title, content)


def line_chart(lines: Sequence[Line], x_axis: Axis, y_axis: Axis, diagonal: bool = False) -> Markup:
    """Draw curves with a legend below; `diagonal` adds the line where both axes are equal."""
    parts = [_frame(x_axis, y_axis)]
    if diagonal:
        parts.append(_path([_x(0), _x(1)], [_y(0), _y(1)], 'var(--muted)', '2 4'))
    for line in lines:
        valid = np.isfinite(line.y)
        xs = [_x(x_axis.share(x)) for x in line.x[valid]]
        ys = [_y(y_axis.share(y)) for y in line.y[valid]]
        parts.append(_path(xs, ys, f'var({line.color})', line.dash))
        notes = np.array(line.notes or (), dtype=object)
        for x, y, note in zip(xs, ys, notes[valid] if line.notes else (), strict=bool(line.notes)):
            circle = '<circle cx="{:.1f}" cy="{:.1f}" r="4" style="fill:var({})"><title>{}</title></circle>'
            parts.append(Markup(circle).format(x, y, line.color, note))
    chart = svg(WIDTH, HEIGHT, Markup().join(parts), f'{y_axis.name} by {x_axis.name}')
    return chart + legend([(line.name, line.color, line.dash) for line in lines])


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Draw a legend from the (name, CSS variable, dash pattern) of each curve."""
    items = [
        Markup(
            '<span><svg class="key" viewBox="0 0 22 8" width="22"><path d="M1 4H21" '
            'style="stroke:var({});stroke-dasharray:{}"/></svg>{}</span>'
        ).format(color, dash or 'none', name)
        for name, color, dash in entries
    ]
    return Markup('<p class="legend">{}</p>').format(Markup().join(items))


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _path(xs: Sequence[float], ys: Sequence[float], color: str, dash: str) -> Markup:
    points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in zip(xs, ys, strict=True))
    return Markup('<polyline points="{}" style="stroke:{};stroke-dasharray:{}"/>').format(
        points, color, dash or 'none'
    )


def _frame(x_axis: Axis, y_axis: Axis) -> Markup:
    """Draw grid, tick labels and names of both axes."""
    bottom, parts = HEIGHT - BOTTOM, []
    text = Markup('<text x="{:.1f}" y="{:.1f}" class="tick {}">{}</text>')
    for tick in x_axis.ticks():
        x = _x(x_axis.share(tick))
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP, bottom))
        parts.append(text.format(x, bottom + 14, 'mid', tick_text(tick)))
    for tick in y_axis.ticks():
        y = _y(y_axis.share(tick))
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(text.format(LEFT - 5, y + 4, 'end', tick_text(tick)))
    below = Markup('<text x="{}" y="{}" class="mid">{}</text>')
    beside = Markup('<text transform="translate(11 {}) rotate(-90)" class="mid">{}</text>')
    parts.append(below.format((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_axis.name))
    parts.append(beside.format((TOP + bottom) / 2, y_axis.name))
    return Markup().join(parts)


def tick_text(value: float) -> str:
    """Format a tick label compactly: 0.05, 20, 20k, 1e-05."""
    return f'{value / 1000:g}k' if abs(value) >= 10_000 else f'{value:g}'
