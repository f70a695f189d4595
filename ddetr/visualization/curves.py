"""Curves of a training, from the scalars that mmengine's local backend writes."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.figure

from ddetr.utils.errors import InputError


def read_scalars(work_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar logged in a work directory, over all of its runs, as (step, value) in the order of steps.

    Where a resumed run logged a step again, the later value counts. Steps are iterations for what training logs,
    epochs for the metrics of an epoch-based validation.

    Raises:
        InputError: there is no log in that folder.
    """
    logs = sorted(Path(work_dir).rglob('vis_data/scalars.json'))
    values: dict[str, dict[int, float]] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            record = json.loads(line)
            step = record.get('step', record.get('iter'))
            for key, value in record.items():
                if (
                    isinstance(value, (int, float))
                    and key not in ('step', 'iter', 'epoch')
                    and step is not None
                ):
                    values.setdefault(key, {})[step] = value
    if not values:
        raise InputError(
            f'{work_dir} holds no */vis_data/scalars.json: name the work directory of a training.'
        )
    return {key: sorted(series.items()) for key, series in values.items()}


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
    scalars = _read(work_dir, keys)
    figure = matplotlib.figure.Figure(figsize=(7, 2.6 * len(keys)), layout='constrained')
    for axes, key in zip(figure.subplots(len(keys), squeeze=False)[:, 0], keys, strict=True):
        steps, values = zip(*scalars[key], strict=True)
        axes.plot(steps, values, marker='o' if len(steps) < 30 else None, markersize=3)
        axes.set_ylabel(key)
        axes.set_xlabel('step')
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
    figure = matplotlib.figure.Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for name, work_dir in work_dirs.items():
        steps, values = zip(*_read(work_dir, [key])[key], strict=True)
        axes.plot(steps, values, label=name, marker='o' if len(steps) < 30 else None, markersize=3)
    axes.set_ylabel(key)
    axes.set_xlabel('step')
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, out_file)


def _read(work_dir: str | Path, keys: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    """`read_scalars`, after a check that all `keys` are there."""
    scalars = read_scalars(work_dir)
    for key in keys:
        if key not in scalars:
            raise InputError(f'{work_dir} has no scalar {key!r}; it has {", ".join(sorted(scalars))}.')
    return scalars


def _save(figure: matplotlib.figure.Figure, out_file: str | Path) -> Path:
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=150)
    return Path(out_file)
