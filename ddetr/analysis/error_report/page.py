"""HTML page of the report: one self-contained file without scripts or network requests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ddetr.evaluation.coco_metric import class_table
from ddetr.utils.files import write_atomically
from ddetr.visualization.charts import Axis, Line, line_chart

from . import charts, measures, pictures
from .charts import number
from .kinds import KINDS, Costs, Errors, error_costs, find_errors
from .runs import Dataset, Run

PHOTO_BYTES = 2_200_000  # of all images together; base64 adds a third
MAX_CLASSES = 30  # in the confusion matrix
MAX_CURVES = 24  # classes with their own curve
_CLASS_HEADER = ('AP', 'AP50', 'AP75', 'small', 'medium', 'large')
RECALL, PRECISION = Axis('recall'), Axis('precision')
RUN_COLORS = ('--run0', '--run1')


class ReportOptions(NamedTuple):
    """Options of the page."""

    title: str = 'Error report'
    score_thr: float = 0.3  # minimum score of detections in the confusion matrix and the pictures
    num_images: int = (
        12  # images with the most errors; the same number with the largest differences between two runs
    )


class Judged(NamedTuple):
    """A run with its errors and metrics."""

    run: Run
    errors: Errors
    costs: Costs
    by_image: measures.ImageErrors
    stats: np.ndarray  # (12,) from `measures.summary`
    classes: dict[str, list[float]]  # from `class_table`


class Row(NamedTuple):
    """A row of a table."""

    name: str
    cells: list[str]
    better: float = 0.0  # improvement of the last run over the first, for the colour


def write_report(dataset: Dataset, runs: Sequence[Run], path: str | Path, options: ReportOptions) -> None:
    """Write the page for one run, or for two runs to compare.

    Raises:
        OSError: The folder of the images or of the page cannot be accessed.
    """
    judged = [_judge(run, dataset, options.score_thr) for run in runs]
    environment = Environment(
        loader=PackageLoader('ddetr.analysis.error_report', '.'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template('report.html').render(_content(dataset, judged, options))
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding='utf-8'))


def _judge(run: Run, dataset: Dataset, score_thr: float) -> Judged:
    errors = find_errors(run, dataset)
    names = dict(zip(dataset.category_ids, dataset.classes, strict=True))
    return Judged(
        run,
        errors,
        error_costs(run, dataset, errors),
        measures.image_errors(run, dataset, score_thr),
        measures.summary(run),
        class_table(run.evaluation, names),
    )


def _content(dataset: Dataset, judged: Sequence[Judged], options: ReportOptions) -> dict[str, Any]:
    """Return the variables of the template."""
    runs = [j.run for j in judged]
    facts = [
        f'{len(dataset.image_ids)} images',
        f'{dataset.num_objects} objects',
        f'{len(dataset.classes)} classes',
    ]
    photos = _Photos(dataset, judged, options)
    return {
        'title': options.title,
        'facts': facts,
        'runs': list(zip([run.name for run in runs], RUN_COLORS, strict=False)),
        'score_thr': f'{options.score_thr:g}',
        'tiles': [
            (
                name,
                number(judged[-1].stats[i]),
                _difference(judged[0].stats[i], judged[-1].stats[i], len(runs)),
            )
            for i, name in enumerate(measures.STATS)
        ],
        'stats': _stats_rows(judged),
        'kinds': [
            (kind, what, [j.errors.counts()[i] for j in judged])
            for i, (kind, what) in enumerate(KINDS.items())
        ],
        'costs': _cost_chart(judged),
        'special': [_special_row(j) for j in judged],
        'curves': _curves(runs),
        'class_curves': _class_curves(dataset, judged),
        'class_header': [
            'objects',
            *(_CLASS_HEADER if len(runs) == 1 else (*(r.name for r in runs), 'change')),
        ],
        'class_rows': _class_rows(dataset, judged),
        'confusions': [_confusion(dataset, run, options.score_thr) for run in runs],
        'calibration': _calibration(runs),
        'by_count': _by_count(dataset, runs),
        'worst': photos.cards(photos.worst()),
        'changed': photos.cards(photos.changed()) if len(runs) == 2 else [],
        'clean': int((photos.total == 0).sum()),
    }


def _special_row(judged: Judged) -> Row:
    costs = judged.costs
    return Row(
        judged.run.name, [number(v) for v in (costs.ap50, costs.false_positives, costs.false_negatives)]
    )


def _difference(first: float, last: float, runs: int) -> str:
    return f'{last - first:+.3f}' if runs == 2 and min(first, last) >= 0 else ''


def _compared(name: str, values: Sequence[float], *before: str) -> Row:
    """Return a row with the value of each run and, for two runs, their difference."""
    cells = [*before, *map(number, values)]
    if len(values) == 1:
        return Row(name, cells)
    difference = _difference(values[0], values[1], 2)
    return Row(name, [*cells, difference or '-'], values[1] - values[0] if difference else 0.0)


def _stats_rows(judged: Sequence[Judged]) -> list[Row]:
    names = (*measures.STATS, *measures.RECALLS)
    return [_compared(name, [float(j.stats[i]) for j in judged]) for i, name in enumerate(names)]


def _class_rows(dataset: Dataset, judged: Sequence[Judged]) -> list[Row]:
    """Return rows of classes by ascending AP; classes without objects come last."""
    objects = np.bincount(dataset.label[~dataset.crowd], minlength=len(dataset.classes))
    rows = []
    for label in _by_ap(dataset, judged):
        name = dataset.classes[label]
        if len(judged) == 1:
            rows.append(Row(name, [str(objects[label]), *map(number, judged[0].classes[name])]))
        else:
            rows.append(_compared(name, [j.classes[name][0] for j in judged], str(objects[label])))
    return rows


def _by_ap(dataset: Dataset, judged: Sequence[Judged]) -> list[int]:
    aps = [judged[-1].classes[name][0] for name in dataset.classes]
    return sorted(range(len(aps)), key=lambda label: (aps[label] < 0, aps[label]))


def _cost_chart(judged: Sequence[Judged]) -> Markup:
    kinds = list(KINDS)
    colors = [[f'--{kind}'] if len(judged) == 1 else list(RUN_COLORS) for kind in kinds]
    return charts.bar_chart(kinds, [[j.costs.by_kind[i] for j in judged] for i in range(len(kinds))], colors)


def _curves(runs: Sequence[Run]) -> Markup:
    recalls, lines = np.linspace(0, 1, 101), []
    for run, color in zip(runs, RUN_COLORS, strict=False):
        for iou, dash in zip(measures.CURVE_IOUS, ('', '6 3', '2 3'), strict=True):
            curve = measures.mean_curve(run, iou)
            if curve is not None:
                prefix = f'{run.name}, ' if len(runs) > 1 else ''
                lines.append(Line(f'{prefix}IoU {iou:g}', color, recalls, curve, dash))
    return line_chart(lines, RECALL, PRECISION)


def _class_curves(dataset: Dataset, judged: Sequence[Judged]) -> list[tuple[str, Markup]]:
    """Return precision-recall curves at IoU 0.5 of the classes with the lowest AP."""
    recalls, result = np.linspace(0, 1, 101), []
    for label in _by_ap(dataset, judged)[:MAX_CURVES]:
        lines = []
        for j, color in zip(judged, RUN_COLORS, strict=False):
            curve = measures.mean_curve(j.run, 0.5, measures.class_column(dataset, j.run, label))
            if curve is not None:
                lines.append(Line(j.run.name, color, recalls, curve))
        if lines:
            result.append((dataset.classes[label], line_chart(lines, RECALL, PRECISION)))
    return result


def _confusion(dataset: Dataset, run: Run, score_thr: float) -> dict[str, Any]:
    """Return the matrix of at most `MAX_CLASSES` classes with the most errors, and the most frequent confusions."""
    matrix = measures.confusion(run, dataset, score_thr)
    classes = len(dataset.classes)
    off = matrix * ~np.eye(classes + 1, dtype=bool)
    wrong = (off.sum(0) + off.sum(1))[:classes]
    shown = np.sort(np.argsort(-wrong, kind='stable')[:MAX_CLASSES])
    index = np.append(shown, classes)
    names = [dataset.classes[label] for label in shown]
    pairs = [(dataset.classes[a], dataset.classes[b], n) for a, b, n in measures.most_confused(matrix, 10)]
    chart = charts.heatmap(matrix[np.ix_(index, index)], [*names, 'nothing there'], [*names, 'not found'])
    return {'name': run.name, 'chart': chart, 'pairs': pairs, 'left_out': classes - len(shown)}


def _calibration(runs: Sequence[Run]) -> dict[str, Any]:
    lines, rows, counts = [], [], []
    for run, color in zip(runs, RUN_COLORS, strict=False):
        found = measures.calibration(run)
        notes = [
            f'{n} detections, mean score {s:.2f}, {p:.2f} right' for n, s, p in zip(*found[:3], strict=True)
        ]
        lines.append(Line(run.name, color, found.score, found.precision, '', notes))
        rows.append((run.name, f'{found.error:.3f}'))
        counts.append([f'{n:,}' for n in found.counts])
    names = [f'{i / measures.BINS:.1f}-{(i + 1) / measures.BINS:.1f}' for i in range(measures.BINS)]
    chart = line_chart(lines, Axis('score'), Axis('fraction correct'), diagonal=True)
    return {'chart': chart, 'rows': rows, 'bins': list(zip(names, zip(*counts, strict=True), strict=True))}


def _by_count(dataset: Dataset, runs: Sequence[Run]) -> dict[str, Any]:
    groups = list(zip(*(measures.ap_by_count(run, dataset) for run in runs), strict=True))  # groups x runs
    drawn = [of_runs for of_runs in groups if of_runs[0].ap >= 0]
    labels = [f'{of_runs[0].name} ({of_runs[0].images} images)' for of_runs in drawn]
    colors = [list(RUN_COLORS[: len(runs)])] * len(labels)
    chart = charts.bar_chart(labels, [[group.ap for group in of_runs] for of_runs in drawn], colors)
    rows = []
    for of_runs in groups:
        numbers = [number(value) for group in of_runs for value in (group.ap, group.ap50)]
        rows.append(Row(of_runs[0].name, [str(of_runs[0].images), *numbers]))
    prefixes = [f'{run.name} ' if len(runs) > 1 else '' for run in runs]
    header = ['images', *(f'{prefix}{name}' for prefix in prefixes for name in ('AP', 'AP50'))]
    return {'chart': chart, 'rows': rows, 'header': header}


class _Photos:
    """Images on the page, each embedded where it first appears."""

    def __init__(self, dataset: Dataset, judged: Sequence[Judged], options: ReportOptions) -> None:
        self.dataset, self.judged, self.options = dataset, judged, options
        self.total = np.sum([j.by_image.total for j in judged], 0)  # (I,)
        self.limit = PHOTO_BYTES // max(1, options.num_images * len(judged))
        self.embedded: dict[int, pictures.Photo] = {}

    def worst(self) -> list[int]:
        """Images with the most errors, summed over runs."""
        return measures.worst_first(self.total, self.options.num_images)

    def changed(self) -> list[int]:
        """Images where the second run improves most over the first, then those where it gets worst."""
        change = self.judged[1].by_image.total - self.judged[0].by_image.total
        half = (self.options.num_images + 1) // 2
        return [*measures.worst_first(-change, half), *measures.worst_first(change, half)]

    def cards(self, images: Sequence[int]) -> list[dict[str, Any]]:
        """Return the file name, errors and captioned pictures of each image."""
        return [
            {
                'name': Path(str(self.dataset.image_files[image].get('img_path'))).name,
                'errors': [self._sentence(j, image) for j in self.judged],
                'pictures': self._pictures(image),
            }
            for image in images
        ]

    def _sentence(self, judged: Judged, image: int) -> str:
        missed, false = int(judged.by_image.missed[image]), int(judged.by_image.false[image])
        prefix = f'{judged.run.name}: ' if len(self.judged) > 1 else ''
        return f'{prefix}{missed} missed, {false} false'

    def _pictures(self, image: int) -> list[tuple[str, Markup]]:
        first = image not in self.embedded
        if first:
            self.embedded[image] = pictures.read_photo(self.dataset.image_files[image], self.limit)
        last, name, score_thr = self.judged[-1], f'photo-{image}', self.options.score_thr
        truth = pictures.truth_boxes(self.dataset, image, last.run, score_thr)
        result = [('truth', pictures.draw_photo(self.embedded[image], name, truth, first))]
        for j in self.judged:
            boxes = pictures.detection_boxes(self.dataset, image, j.run, j.errors, score_thr)
            caption = j.run.name if len(self.judged) > 1 else 'detections'
            if len(boxes) == pictures.MAX_BOXES:
                caption += f', the best {pictures.MAX_BOXES}'
            result.append((caption, pictures.draw_photo(self.embedded[image], name, boxes, False)))
        return result
