"""Training curves, from the scalars written by mmengine's local backend."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddetr.utils.errors import InputError

STEPS = ('step', 'iter', 'epoch')


class Curve(NamedTuple):
    """Values of one scalar in the order of steps."""

    points: list[tuple[int, float]]  # (step, value)
    unit: str  # unit of the steps: 'iteration', or 'epoch' for metrics of epoch-based validation


def read_scalars(work_dir: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Read the points of all curves in a work directory; see `read_curves`."""
    return {key: curve.points for key, curve in read_curves(work_dir).items()}


def read_curves(work_dir: str | Path, keys: Iterable[str] = ()) -> dict[str, Curve]:
    """Read all scalars logged in a work directory, across its runs.

    A resumed run continues the earlier ones: if a step was logged twice, the later value counts. If a run started from
    scratch, earlier runs are ignored.

    Raises:
        InputError: There is no log in the folder, it cannot be read, or one of `keys` was not logged; the message
            lists the logged ones.
    """
    values: dict[str, dict[int, float]] = {}
    unit_of: dict[str, str] = {}
    begun: int | None = None  # first step of the run
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
            f'{work_dir} has no */vis_data/scalars.json: give the work directory of a training run.'
        )
    for key in keys:
        if key not in values:
            raise InputError(f'{work_dir} has no scalar {key!r}; it has {", ".join(sorted(values))}.')
    return {key: Curve(sorted(series.items()), unit_of[key]) for key, series in values.items()}


def _logs(work_dir: Path) -> list[Path]:
    """Return the logs of all runs in chronological order; run folders are named after their start time."""
    return sorted([*work_dir.glob('vis_data/scalars.json'), *work_dir.glob('*/vis_data/scalars.json')])


def _records(log: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log; the last line may be incomplete during training."""
    lines = log.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f'{log}, line {number}: invalid JSON; remove the line.') from error


def _scalars(record: dict[str, Any]) -> list[str]:
    """Names of a record's scalars, without `time` and `data_time` of validation, which clash with training's."""
    left_out = STEPS if 'iter' in record else (*STEPS, 'time', 'data_time')
    return [key for key, value in record.items() if isinstance(value, (int, float)) and key not in left_out]


def draw_curves(work_dir: str | Path, keys: Iterable[str], out_file: str | Path) -> Path:
    """Plot scalars of a training run, such as `loss` and `coco/bbox_mAP`, below each other; see `read_curves`.

    `out_file` may be a `.png`, `.pdf` or `.svg` file.
    """
    curves = read_curves(work_dir, keys := list(keys))
    return _draw([(key, [(None, curves[key])]) for key in keys], out_file, height=2.6)


def draw_comparison(work_dirs: Mapping[str, str | Path], key: str, out_file: str | Path) -> Path:
    """Plot one scalar of several training runs, given by legend name, in one diagram; see `draw_curves`."""
    curves = [(name, read_curves(work_dir, [key])[key]) for name, work_dir in work_dirs.items()]
    return _draw([(key, curves)], out_file, height=4.2)


def _draw(
    diagrams: Sequence[tuple[str, Sequence[tuple[str | None, Curve]]]], out_file: str | Path, height: float
) -> Path:
    """Plot named curves in diagrams below each other, with titles at the y axes."""
    from matplotlib.figure import Figure  # takes 0.3 s to import

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
