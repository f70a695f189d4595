"""HTML page of a training run: curves and validation pictures, without scripts or network requests."""

import base64
import datetime
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ddetr.utils.errors import InputError
from ddetr.utils.files import write_atomically

from .charts import Line, axis_for, line_chart
from .curves import Curve, read_curves

PAGE, PROGRESS, PICTURES = 'curves.html', 'progress.json', 'val_pictures'  # in a work directory
MAX_POINTS = 400  # per curve; longer curves are averaged
MARKED_POINTS = 60  # curves with at most this many points mark them, with their values as tooltips
MAX_LINES = 8  # per chart, the number of colours
MAX_EVALUATIONS = 6  # evaluations with pictures on the page, the most recent ones
REFRESH_S = 10
TITLES = {
    'grad_norm': 'Gradient norm',
    'time': 'Seconds per iteration',
    'data_time': 'Data loading, seconds per iteration',
    'images_per_second': 'Images per second',
    'memory': 'Memory in MiB',
}
PRECISION = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m', 'bbox_mAP_l')


class Progress(NamedTuple):
    """Progress of a training run, stored in `progress.json` beside its log."""

    title: str  # name of the config
    state: str  # 'running' or 'ended'
    iteration: int
    max_iterations: int
    epoch: int | None  # None for iteration-based training
    max_epochs: int | None
    iterations_per_epoch: int | None
    accumulated: int  # iterations per optimizer step
    images_per_iteration: int  # over all processes
    eta_s: float | None
    written_s: float  # seconds since 1970

    @property
    def step_name(self) -> str:
        """Name of the x axis of training curves."""
        if self.accumulated > 1:
            return f'iteration (one optimizer step every {self.accumulated} iterations)'
        return 'iteration (one optimizer step each)'


class Chart(NamedTuple):
    """A chart on the page."""

    title: str
    chart: Markup
    last: str  # most recent values


def write_training_page(work_dir: str | Path) -> Path:
    """Write `curves.html` to a work directory from what has been logged so far; return its path.

    Raises:
        InputError: There is no log yet, or it cannot be read.
    """
    path = Path(work_dir, PAGE)
    write_atomically(
        path, lambda unfinished: unfinished.write_text(training_page(work_dir), encoding='utf-8')
    )
    return path


def training_page(work_dir: str | Path) -> str:
    """Return the HTML of `write_training_page`; the page reloads itself while training is running."""
    curves = read_curves(work_dir)
    progress = _read_progress(Path(work_dir))
    running = progress is not None and progress.state == 'running'
    environment = Environment(
        loader=PackageLoader('ddetr.visualization', '.'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template('training.html').render(
        title=progress.title if progress else Path(work_dir).resolve().name,
        state=progress.state if progress else '',
        refresh_s=REFRESH_S if running else None,
        facts=_facts(progress) if progress else [],
        share=progress.iteration / max(progress.max_iterations, 1) if progress else 0,
        sections=_sections(curves, progress),
        pictures=_pictures(Path(work_dir, PICTURES)),
    )


def write_progress(progress: Progress, work_dir: str | Path) -> None:
    """Write `progress.json` to a work directory."""
    text = json.dumps(progress._asdict())
    write_atomically(Path(work_dir, PROGRESS), lambda unfinished: unfinished.write_text(text))


def _read_progress(work_dir: Path) -> Progress | None:
    try:
        return Progress(**json.loads((work_dir / PROGRESS).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise InputError(
            f'{work_dir / PROGRESS} was not written by this version of ddetr: remove it.'
        ) from error


def _facts(progress: Progress) -> list[str]:
    facts = [f'iteration {progress.iteration:,} of {progress.max_iterations:,}']
    if progress.max_epochs is not None:
        facts.append(f'epoch {progress.epoch} of {progress.max_epochs}')
    if progress.iterations_per_epoch:
        facts.append(f'{progress.iterations_per_epoch:,} iterations per epoch')
    facts.append(f'{progress.images_per_iteration} images per iteration')
    if progress.accumulated > 1:
        facts.append(f'one optimizer step every {progress.accumulated} iterations')
    if progress.state == 'running' and progress.eta_s is not None:
        facts.append(f'{datetime.timedelta(seconds=int(progress.eta_s))} remaining')
    written = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(progress.written_s))
    return [*facts, f'written {written}']


def _sections(curves: Mapping[str, Curve], progress: Progress | None) -> list[tuple[str, list[Chart]]]:
    """Group the charts under headings; every curve appears in one of them."""
    left = dict(curves)

    def take(title: str, names: Sequence[str], from_zero: bool = False) -> Iterator[Chart]:
        """Yield charts of these curves, one per unit of steps and per `MAX_LINES` curves."""
        chosen = [name for name in names if name in left]
        for unit in dict.fromkeys(left[name].unit for name in chosen):
            group = [name for name in chosen if left[name].unit == unit]
            for start in range(0, len(group), MAX_LINES):
                part = {name: left[name] for name in group[start : start + MAX_LINES]}
                yield _chart(title, part, progress, from_zero)
        for name in chosen:
            del left[name]

    metrics = [name for name in curves if '/' in name]
    ap = [name for key in PRECISION for name in metrics if name.rpartition('/')[2] == key]
    losses = [name for name in curves if 'loss' in name and '/' not in name]
    terms = dict.fromkeys(name.rpartition('.')[2] for name in losses if name != 'loss')
    progress_charts = [
        *take('Average precision', ap, True),
        *take('Total loss', ['loss']),
        *take('IoU of matched pairs', ['matched_iou'], True),
        *take('Fraction of queries used', ['queries_used'], True),
        *take('Other metrics', metrics, True),
    ]
    loss_charts: list[Chart] = []
    for term in terms:  # last decoder layer first, then the others
        loss_charts += take(term, [term, *(name for name in losses if name.endswith(f'.{term}'))])
    other = [*take('Learning rate', [name for name in curves if name.endswith('lr')])]
    for name, title in TITLES.items():
        other += take(title, [name])
    for name in list(left):
        other += take(name, [name])
    sections = [('Progress', progress_charts), ('Loss terms', loss_charts), ('Optimisation and speed', other)]
    return [(heading, charts) for heading, charts in sections if charts]


def _chart(title: str, curves: Mapping[str, Curve], progress: Progress | None, from_zero: bool) -> Chart:
    unit = next(iter(curves.values())).unit
    step_name = progress.step_name if progress and unit == 'iteration' else unit
    lines, last = [], []
    for number, (name, curve) in enumerate(curves.items()):
        points = np.array(curve.points, dtype=float)
        if '/' in name:
            points[points[:, 1] < 0, 1] = np.nan  # -1: undefined, e.g. no small objects
        x, y = _thinned(points)
        short = name.rpartition('/')[2]
        notes = [f'{short}, {unit} {step:,.0f}: {value:.5g}' for step, value in zip(x, y, strict=True)]
        marked = notes if len(x) <= MARKED_POINTS else None
        lines.append(Line(short, f'--c{number}', x, y, '', marked))
        last.append(f'{short} {points[-1, 1]:.4g}'.replace('nan', '-'))
    values = np.concatenate([line.y for line in lines])
    steps = np.concatenate([line.x for line in lines])
    x_axis = axis_for(step_name, steps, from_zero=True)._replace(high=max(float(steps.max()), 1.0))
    return Chart(title, line_chart(lines, x_axis, axis_for('', values, from_zero)), ' · '.join(last))


def _thinned(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of points (N, 2), averaged over neighbours down to at most `MAX_POINTS`."""
    if len(points) > MAX_POINTS:
        points = np.stack([part.mean(0) for part in np.array_split(points, MAX_POINTS)])
    return points[:, 0], points[:, 1]


def _pictures(folder: Path) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return validation images with their names, each as (step, base64 JPEG), latest evaluation first."""
    evaluations = sorted(
        (path for path in folder.glob('*_*') if path.name.rpartition('_')[2].isdigit()),
        key=lambda path: int(path.name.rpartition('_')[2]),
    )[-MAX_EVALUATIONS:]
    found: dict[str, list[tuple[str, str]]] = {}
    for evaluation in reversed(evaluations):
        for path in sorted(evaluation.glob('[!.]*.jpg')):
            data = base64.b64encode(path.read_bytes()).decode()
            found.setdefault(path.stem, []).append((evaluation.name.replace('_', ' '), data))
    return [(name.partition('_')[2], found[name]) for name in sorted(found)]
