"""Figures of the sampling points of deformable attention, drawn on the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MARKERS = 'os^Dv*PX'  # of the levels, finest first
REFERENCE, BOX = '#3ee66b', '#ffffff'
PANEL_INCHES = 3.1
RIM = 0.06  # margin relative to the longer image side, drawn if points lie outside the image


class SampledPoints(NamedTuple):
    """Sampling points of one query in one layer, in pixels of the original image: M heads, K points over all levels."""

    layer: str  # name of the sampling module
    xy_px: np.ndarray  # (M, K, 2), possibly outside the image
    weights: np.ndarray  # (M, K), sum to 1 per head
    level_of_point: np.ndarray  # (K,) int64
    reference_px: (
        np.ndarray | None
    )  # (4,) box x1 y1 x2 y2 or (2,) point x y; None if the layer gave only locations


class Panel(NamedTuple):
    """One picture of a figure."""

    title: str
    xy_px: np.ndarray  # (N, 2)
    weights: np.ndarray  # (N,)
    levels: np.ndarray  # (N,) int64, determines the marker
    reference_px: np.ndarray | None  # as in `SampledPoints`
    box_xyxy_px: np.ndarray | None = None  # (4,), final prediction of the query, or that of this layer


def panels_of(points: Sequence[SampledPoints], split: str, box_xyxy_px: np.ndarray | None) -> list[Panel]:
    """Return the panels of a query: one per layer (`split` 'layers'), or one per head ('heads') or level ('levels') of
    the last layer.
    """
    if split == 'layers':
        names = _short_names([p.layer for p in points])
        return [
            _panel(name, p, slice(None), slice(None), box_xyxy_px)
            for name, p in zip(names, points, strict=True)
        ]
    last = points[-1]
    if split == 'heads':
        heads = range(len(last.weights))
        return [_panel(f'head {m}', last, slice(m, m + 1), slice(None), box_xyxy_px) for m in heads]
    levels = np.unique(last.level_of_point)
    return [_panel(f'level {i}', last, slice(None), last.level_of_point == i, box_xyxy_px) for i in levels]


def draw_panels(
    image: np.ndarray,
    rows: Sequence[Sequence[Panel]],
    out_file: str | Path,
    titles: Sequence[str],
    zoom: bool = False,
) -> Path:
    """Draw panels on an image, with a legend of weights and levels.

    Args:
        image: Image, (H, W, 3) RGB uint8.
        rows: Panels of each query; those of a single query are wrapped after four.
        out_file: `.png`, `.jpg`, `.pdf` or `.svg` file; its folder is created if needed.
        titles: One title per row.
        zoom: Show only the region around the points instead of the whole image.
    """
    from matplotlib.figure import Figure  # takes 0.3 s to import

    lines: list[Sequence[Panel]] = list(rows)
    if len(rows) == 1:
        columns = min(4, len(rows[0])) if len(rows[0]) % 3 else min(3, len(rows[0]))
        lines = [rows[0][i : i + columns] for i in range(0, len(rows[0]), columns)]
    columns = max(map(len, lines))
    panels = [panel for row in rows for panel in row]
    view = _view(image, panels, zoom)
    aspect = abs(view[3] - view[2]) / (view[1] - view[0])
    size = (
        columns * PANEL_INCHES + 1.0,
        len(lines) * (PANEL_INCHES * aspect + 0.3) + 0.45 + 0.3 * (len(rows) == 1),
    )
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(lines), columns, squeeze=False)
    top = max(float(panel.weights.max(initial=0)) for panel in panels)
    backdrop = _backdrop(image)
    for i, line in enumerate(lines):
        for axis in axes[i, len(line) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes[i], line, strict=False):
            _draw(axis, backdrop, panel, top, view)
        if len(rows) > 1:
            axes[i, 0].set_ylabel(titles[i], fontsize=12)
    if len(rows) == 1:
        figure.suptitle(titles[0], fontsize=13)
    _legend(figure, axes, panels, top)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=150)
    return Path(out_file)


def _panel(
    title: str,
    points: SampledPoints,
    heads: slice,
    chosen: slice | np.ndarray,
    box_xyxy_px: np.ndarray | None,
) -> Panel:
    xy, weights = points.xy_px[heads][:, chosen], points.weights[heads][:, chosen]
    levels = np.broadcast_to(points.level_of_point[chosen], weights.shape)
    flat = xy.reshape(-1, 2), weights.reshape(-1), levels.reshape(-1)
    return Panel(title, *flat, points.reference_px, box_xyxy_px)


def _short_names(layers: Sequence[str]) -> list[str]:
    """Shorten `decoder.layers.2.cross_attn` to 'decoder layer 3'; names without exactly one number are unchanged."""
    names = []
    for layer in layers:
        parts = layer.split('.')
        numbers = [i for i, part in enumerate(parts) if part.isdigit()]
        start = ' '.join(parts[: numbers[0]]).removesuffix('layers').strip() if len(numbers) == 1 else ''
        names.append(f'{start} layer {int(parts[numbers[0]]) + 1}'.strip() if len(numbers) == 1 else layer)
    return names


def _backdrop(image: np.ndarray) -> np.ndarray:
    """Desaturate and brighten the image, so that points of any colour stand out."""
    grey = image.mean(-1, keepdims=True)
    return np.clip(0.4 * image + 0.3 * grey + 50, 0, 255).astype(np.uint8)


def _view(image: np.ndarray, panels: Sequence[Panel], zoom: bool) -> tuple[float, float, float, float]:
    """Return the axis limits x1, x2, y2, y1: the image or the visible region, with a margin for points outside."""
    size = np.array(image.shape[1::-1])
    rim = RIM * size.max() if any(_share_outside(panel, size) >= 0.005 for panel in panels) else 0
    low, high = np.zeros(2), size
    if zoom:
        corners = [p.xy_px[p.weights > 0.02 * p.weights.max()] for p in panels if len(p.xy_px)]
        marks = [mark for p in panels for mark in (p.reference_px, p.box_xyxy_px) if mark is not None]
        everything = np.concatenate([*corners, *(mark.reshape(-1, 2) for mark in marks)])
        low, high = everything.min(0), everything.max(0)
        margin = 0.1 * (high - low).max()
        low, high = low - margin, high + margin
    low, high = np.clip(low, -rim, size - 1), np.clip(high, 1, size + rim)
    if not zoom:
        low, high = low - rim, high + rim
    return low[0], high[0], high[1], low[1]


def _share_outside(panel: Panel, size_wh: np.ndarray) -> float:
    """Fraction of the attention weight outside the image, where zeros are sampled."""
    inside = ((panel.xy_px >= 0) & (panel.xy_px <= size_wh)).all(1)
    return panel.weights[~inside].sum() / max(panel.weights.sum(), 1e-12)


def _draw(axis: Any, backdrop: np.ndarray, panel: Panel, top: float, view: tuple[float, ...]) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = backdrop.shape[:2]
    # coordinates start at the image corner, imshow's at the centre of the first pixel
    axis.imshow(backdrop, extent=(0, width, height, 0), interpolation='lanczos')
    outline = [withStroke(linewidth=3.2, foreground='#000000b0')]
    for mark, color, style in ((panel.box_xyxy_px, BOX, '-'), (panel.reference_px, REFERENCE, '--')):
        if mark is not None and len(mark) == 4:
            corner, sides = tuple(mark[:2]), mark[2:] - mark[:2]
            axis.add_patch(
                Rectangle(
                    corner,
                    *sides,
                    fill=False,
                    edgecolor=color,
                    linestyle=style,
                    linewidth=1.6,
                    path_effects=outline,
                )
            )
    order = np.argsort(panel.weights, kind='stable')  # largest weights on top
    share = panel.weights / (top or 1)
    for level in np.unique(panel.levels):
        chosen = order[panel.levels[order] == level]
        axis.scatter(
            *panel.xy_px[chosen].T,
            c=panel.weights[chosen],
            s=10 + 60 * share[chosen],
            marker=MARKERS[level % len(MARKERS)],
            cmap='plasma',
            vmin=0,
            vmax=top,
            edgecolors='white',
            linewidths=0.5,
            zorder=3 + share[chosen].mean(),
        )
    if panel.reference_px is not None:
        at = panel.reference_px.reshape(-1, 2).mean(0)
        axis.plot(*at, '+', color=REFERENCE, markersize=11, markeredgewidth=2, zorder=6, path_effects=outline)
    outside = _share_outside(panel, np.array([width, height]))
    axis.set_title(panel.title + (f' · {outside:.0%} outside' if outside >= 0.005 else ''), fontsize=10)
    axis.set_facecolor('#f0f0f0')
    axis.set(xlim=view[:2], ylim=view[2:], xticks=[], yticks=[])


def _legend(figure: Any, axes: Any, panels: Sequence[Panel], top: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    levels = sorted({int(level) for panel in panels for level in panel.levels})
    bar = ScalarMappable(Normalize(0, top), 'plasma')
    figure.colorbar(
        bar,
        ax=axes.ravel().tolist(),
        shrink=min(0.9, 2.2 / len(axes)),
        aspect=22,
        pad=0.01,
        label='attention weight',
    )
    style: dict[str, Any] = {
        'linestyle': '',
        'markerfacecolor': '#888888',
        'markeredgecolor': '#555555',
        'markersize': 6,
    }
    entries = [Line2D([], [], marker=MARKERS[i % len(MARKERS)], label=f'level {i}', **style) for i in levels]
    cross: dict[str, Any] = {'marker': '+', 'markersize': 9, 'markeredgewidth': 2, 'linestyle': '--'}
    entries.append(Line2D([], [], color='#27b04c', label='reference', **cross))
    if any(panel.box_xyxy_px is not None for panel in panels):
        entries.append(Line2D([], [], color='#777777', label='predicted box'))
    figure.legend(
        handles=entries,
        columnspacing=1.2,
        handletextpad=0.4,
        loc='outside lower center',
        ncols=min(len(entries), 3 * axes.shape[1]),  # as many as fit in a row
        fontsize=10,
        frameon=False,
    )
