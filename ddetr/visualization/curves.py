"""Curves of a training, from the scalars that mmengine's local backend writes."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddetr.utils.errors import InputError

STEPS = ('step', 'iter', 'epoch')


class Curve(NamedTuple):
    """One scalar's values, in the order of steps."""

    points: list[tuple[int, float]]  # (step, value)
    unit: str  # of the steps: 'iteration', or 'epoch' for the metrics of an epoch-based validation


def read_scalars(work_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The points of every curve in a work directory, see `read_curves`."""
    return {key: curve.points for key, curve in read_curves(work_dir).items()}


def read_curves(work_dir: str | Path, keys: Iterable[str] = ()) -> dict[str, Curve]:
    """Every scalar logged in a work directory, over all of its runs.

    A resumed run continues the earlier ones: of a step logged twice, the later value counts. If a run began anew, the
    earlier ones are left out.

    Raises:
        InputError: There is no log in that folder, it cannot be read, or one of `keys` was not logged; the message
            names those that were.
    """
    values: dict[str, dict[int, float]] = {}
    unit_of: dict[str, str] = {}
    begun: int | None = None  # the first step of the training
    for log in _logs(Path(work_dir)):
        iteration = 0
        for record in _records(log):
            if not iteration and (first := record.get('iter')):
                if begun is not None and first <= begun:
                    values.clear()
                begun = first
            iteration = record.get('iter', iteration)
            if (step := record.get('step', record.get('iter'))) is None:
                continue
            for key in _scalars(record):
                values.setdefault(key, {})[step] = record[key]
                # validation logs either the iteration, which is at least the last one logged, or the epoch
                unit_of[key] = 'iteration' if step >= iteration else 'epoch'
    if not values:
        raise InputError(
            f'{work_dir} holds no */vis_data/scalars.json: name the work directory of a training.'
        )
    for key in keys:
        if key not in values:
            raise InputError(f'{work_dir} has no scalar {key!r}; it has {", ".join(sorted(values))}.')
    return {key: Curve(sorted(series.items()), unit_of[key]) for key, series in values.items()}


def _logs(work_dir: Path) -> list[Path]:
    """The logs of all runs, from the first to the last; a run's folder is named after its time."""
    return sorted([*work_dir.glob('vis_data/scalars.json'), *work_dir.glob('*/vis_data/scalars.json')])


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """The log's lines; the last one may be half-written while the training runs."""
    lines = log.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f'{log}, line {number}: no JSON; remove the line.') from error


def _scalars(record: dict[str, Any]) -> list[str]:
    """Names of a record's values; `time` and `data_time` of a validation would be taken for the training's."""
    left_out = STEPS if 'iter' in record else (*STEPS, 'time', 'data_time')
    return [key for key, value in record.items() if isinstance(value, (int, float)) and key not in left_out]


def draw_curves(work_dir: str | Path, keys: Iterable[str], out_file: str | Path) -> Path:
    """Draw some scalars of a training, such as `loss` and `coco/bbox_mAP`, below each other; see `read_curves`.

    `out_file` is a `.png`, `.pdf` or `.svg`.
    """
    curves = read_curves(work_dir, keys := list(keys))
    return _draw([(key, [(None, curves[key])]) for key in keys], out_file, height=2.6)


def draw_comparison(work_dirs: Mapping[str, str | Path], key: str, out_file: str | Path) -> Path:
    """Draw one scalar of several trainings, by the names of the legend, into one diagram; as `draw_curves`."""
    curves = [(name, read_curves(work_dir, [key])[key]) for name, work_dir in work_dirs.items()]
    return _draw([(key, curves)], out_file, height=4.2)


def _draw(
    diagrams: Sequence[tuple[str, Sequence[tuple[str | None, Curve]]]], out_file: str | Path, height: float
) -> Path:
    """Draw named curves into diagrams, whose titles stand at the y axis, below each other."""
    from matplotlib.figure import Figure  # 0.3 s, which only drawing needs

    figure = Figure(figsize=(7, height * len(diagrams)), layout='constrained')
    rows = figure.subplots(len(diagrams), squeeze=False)[:, 0]
    for axes, (title, curves) in zip(rows, diagrams, strict=True):
        for name, curve in curves:
            steps, values = zip(*curve.points, strict=True)
            axes.plot(steps, values, marker='o' if len(steps) < 30 else None, markersize=3, label=name)
        if all(name is not None for name, _ in curves):
            axes.legend()
        axes.set(xlabel=' or '.join(sorted({curve.unit for _, curve in curves})), ylabel=title)
        axes.grid(alpha=0.3)
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_file, dpi=150)
    return Path(out_file)
