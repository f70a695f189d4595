"""Curves of a training, from the scalars that mmengine's local backend writes."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddetr.utils.errors import InputError


class Curve(NamedTuple):
    """One scalar's values, in the order of steps."""

    points: list[tuple[int, float]]  # (step, value)
    unit: str  # of the steps: 'iteration', or 'epoch' for the metrics of an epoch-based validation


def read_scalars(work_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar logged in a work directory, over all of its runs, as (step, value) in the order of steps.

    Where a resumed run logged a step again, the later value counts.

    Raises:
        InputError: there is no log in that folder.
    """
    return {key: curve.points for key, curve in _read_curves(work_dir).items()}


def _read_curves(work_dir: str | Path) -> dict[str, Curve]:
    values: dict[str, dict[int, float]] = {}
    unit_of: dict[str, str] = {}
    for log in sorted(Path(work_dir).rglob('vis_data/scalars.json')):
        iteration = 0
        for record in map(json.loads, log.read_text().splitlines()):
            iteration = record.get('iter', iteration)
            step = record.get('step', record.get('iter'))
            for key, value in record.items():
                if (
                    isinstance(value, (int, float))
                    and key not in ('step', 'iter', 'epoch')
                    and step is not None
                ):
                    values.setdefault(key, {})[step] = value
                    # validation logs either the iteration, which is at least the last one logged, or the epoch
                    unit_of[key] = 'iteration' if step >= iteration else 'epoch'
    if not values:
        raise InputError(
            f'{work_dir} holds no */vis_data/scalars.json: name the work directory of a training.'
        )
    return {key: Curve(sorted(series.items()), unit_of[key]) for key, series in values.items()}


def draw_curves(work_dir: str | Path, keys: Iterable[str], out_file: str | Path) -> Path:
    """Draw some scalars of a training below each other.

    Args:
        work_dir: of the training.
        keys: the scalars, such as `loss` and `coco/bbox_mAP`.
        out_file: the picture, `.png`, `.pdf` or `.svg`.

    Raises:
        InputError: a key that was not logged; the message names those that were.
    """
    keys = list(keys)
    curves = _read(work_dir, keys)
    figure = _figure((7, 2.6 * len(keys)))
    for axes, key in zip(figure.subplots(len(keys), squeeze=False)[:, 0], keys, strict=True):
        _plot(axes, curves[key])
        axes.set(xlabel=curves[key].unit, ylabel=key)
        axes.grid(alpha=0.3)
    return _save(figure, out_file)


def draw_comparison(work_dirs: Mapping[str, str | Path], key: str, out_file: str | Path) -> Path:
    """Draw one scalar of several trainings into one diagram.

    Args:
        work_dirs: of the trainings, by the names that the legend gives them.
        key: the scalar, such as `coco/bbox_mAP`.
        out_file: the picture, `.png`, `.pdf` or `.svg`.

    Raises:
        InputError: a training did not log the key; the message names what it did log.
    """
    figure = _figure((7, 4.2))
    axes = figure.subplots()
    curves = {name: _read(work_dir, [key])[key] for name, work_dir in work_dirs.items()}
    for name, curve in curves.items():
        _plot(axes, curve, label=name)
    axes.set(xlabel=' or '.join(sorted({curve.unit for curve in curves.values()})), ylabel=key)
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, out_file)


def _read(work_dir: str | Path, keys: Iterable[str]) -> dict[str, Curve]:
    """All curves, after a check that `keys` are there."""
    curves = _read_curves(work_dir)
    for key in keys:
        if key not in curves:
            raise InputError(f'{work_dir} has no scalar {key!r}; it has {", ".join(sorted(curves))}.')
    return curves


def _plot(axes: Any, curve: Curve, **style: Any) -> None:
    steps, values = zip(*curve.points, strict=True)
    axes.plot(steps, values, marker='o' if len(steps) < 30 else None, markersize=3, **style)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure  # 0.3 s, which only drawing needs

    return Figure(figsize=size, layout='constrained')


def _save(figure: Any, out_file: str | Path) -> Path:
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=150)
    return Path(out_file)
