"""Test set of a config, and detections on it matched by pycocotools."""

import contextlib
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr.apis import EvalOptions, evaluate_detector
from ddetr.engine.config import check_config, explain_build_errors
from ddetr.evaluation.coco_metric import ImageDetections, truth_of_samples
from ddetr.registry import DATASETS, SCOPE
from ddetr.structures import Annotations
from ddetr.utils.errors import InputError

POSITIVE_IOU = 0.5
FOUND, FALSE, IGNORED = 1, 0, -1  # state of a detection: matches an object, nothing, or a crowd region


@dataclass(frozen=True)
class Dataset:
    """Ground truth of a test set with I images and G objects, crowd regions included.

    Images and labels are indices into `image_ids` and `classes`.
    """

    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # ids of the classes
    image_ids: tuple[int | str, ...]  # ids in the dataset, in pycocotools' order
    image_files: tuple[dict[str, Any], ...]  # `img_path` and, if known, `height` and `width`
    image: np.ndarray  # (G,) int64
    label: np.ndarray  # (G,) int64
    boxes_xywh_px: np.ndarray  # (G, 4)
    crowd: np.ndarray  # (G,) bool
    coco: dict[str, Any]  # the same in COCO format; image i has id i + 1

    @property
    def num_objects(self) -> int:
        """Number of objects without crowd regions."""
        return int((~self.crowd).sum())

    def objects_per_image(self) -> np.ndarray:
        """Number of objects per image (I,), without crowd regions."""
        return np.bincount(self.image[~self.crowd], minlength=len(self.image_ids))


@dataclass(frozen=True)
class Run:
    """N detections of one detector: the best 100 per image and class, sorted by image, then by descending score."""

    name: str
    evaluation: COCOeval  # accumulated over all images
    image: np.ndarray  # (N,) int64
    label: np.ndarray  # (N,) int64
    scores: np.ndarray  # (N,)
    boxes_xywh_px: np.ndarray  # (N, 4)
    state: np.ndarray  # (N,) FOUND, FALSE or IGNORED at `POSITIVE_IOU`
    truth: np.ndarray  # (N,) int64, matched object, -1 for none

    def found_truth(self, num_truth: int, score_thr: float = -np.inf) -> np.ndarray:
        """Return a mask (G,) of objects that are matched by a detection with at least this score."""
        found = np.zeros(num_truth, dtype=bool)
        found[self.truth[(self.state == FOUND) & (self.scores >= score_thr)]] = True
        return found


def read_dataset(cfg: Config) -> Dataset:
    """Read the test set of a config, in any format: the `instances` of its items are the ground truth.

    Raises:
        InputError: It has no annotations, no class names, or two images with the same id.
    """
    check_config(cfg)
    init_default_scope(cfg.get('default_scope', SCOPE))
    with explain_build_errors():
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    meta = dataset.metainfo
    if not meta.get('classes'):
        raise InputError('the test dataset has no class names: set `classes` in its metainfo.')
    classes = tuple(meta['classes'])
    category_ids = tuple(meta.get('category_ids') or range(1, len(classes) + 1))
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    truth, numbers = truth_of_samples([_without_detections(item) for item in items], list(category_ids))
    by_number = dict(zip(numbers, items, strict=True))
    ordered = [by_number[number] for number in range(1, len(by_number) + 1)]
    ids = [item['img_id'] for item in ordered]
    if len(set(ids)) < len(ids):
        twice = next(id_ for id_ in ids if ids.count(id_) > 1)
        raise InputError(
            f'the test dataset has two images with img_id {twice!r}: report on its datasets one by one.'
        )
    rows = truth['annotations']
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    if not any(not row['iscrowd'] for row in rows):
        raise InputError(
            f'the {len(ids)} images of the test dataset have no objects to compare detections with.'
        )
    return Dataset(
        classes,
        category_ids,
        tuple(ids),
        tuple({key: item[key] for key in ('img_path', 'height', 'width') if key in item} for item in ordered),
        np.array([row['image_id'] - 1 for row in rows]),
        np.array([label_of[row['category_id']] for row in rows]),
        np.array([row['bbox'] for row in rows], dtype=float),
        np.array([row['iscrowd'] for row in rows], dtype=bool),
        truth,
    )


def _without_detections(item: Mapping[str, Any]) -> ImageDetections:
    annotations = Annotations.of(item['instances']) if 'instances' in item else None
    empty = np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=int)
    return ImageDetections(item['img_id'], str(item.get('img_path')), *empty, annotations)


def evaluate_run(
    source: str | Path,
    config: str | Path,
    dataset: Dataset,
    name: str | None = None,
    cfg_options: Mapping = {},
) -> Run:
    """Match detections to a dataset's objects.

    Args:
        source: A `.json` file of detections in COCO's result format, or a checkpoint to run on the test set.
        config: Config file of the checkpoint.
        dataset: Ground truth.
        name: Name in the report; by default the file name.
        cfg_options: Changes to the config.

    Raises:
        InputError: The file has no detections for this dataset, or the checkpoint does not fit the config's model.
    """
    source = Path(source)
    if source.suffix == '.json':
        rows = read_detections(source, dataset)
    else:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, 'detections.json')
            evaluate_detector(
                config, source, EvalOptions(work_dir=folder, out=str(out), cfg_options=cfg_options)
            )
            rows = read_detections(out, dataset)
    return _matched(name or source.stem, _evaluate(dataset, rows), rows, dataset)


def read_detections(path: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Read the rows of a result file, with `image_id` numbered as in `dataset.coco`.

    Raises:
        InputError: The file is invalid; the message names the file, the row and the problem.
    """
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f'detections {path} do not exist: write them with tools/test.py --out.') from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise InputError(f'detections {path} are not valid JSON (truncated?): {error}') from None
    if not isinstance(rows, list):
        raise InputError(
            f"detections {path} hold a {type(rows).__name__}, not the list of COCO's result format: write them with "
            'tools/test.py --out.'
        )
    number_of = {image_id: number for number, image_id in enumerate(dataset.image_ids, start=1)}
    known = set(dataset.category_ids)
    for index, row in enumerate(rows):
        where = f'detections {path}: row {index}'
        for key in ('image_id', 'category_id', 'bbox', 'score'):
            if not isinstance(row, dict) or key not in row:
                raise InputError(f"{where} has no {key!r}, which COCO's result format requires in every row.")
        if not isinstance(row['image_id'], int | str) or row['image_id'] not in number_of:
            raise InputError(
                f'{where} has image_id {row["image_id"]!r}, which is not in the test dataset of the config: use '
                'the config that the detections were made with.'
            )
        if not isinstance(row['category_id'], int) or row['category_id'] not in known:
            raise InputError(
                f'{where} has category_id {row["category_id"]!r}, but the dataset has the categories '
                f'{_listed(dataset.category_ids)}: use the config that the detections were made with.'
            )
        numbers = [*row['bbox'], row['score']] if isinstance(row['bbox'], list) else []
        if len(numbers) != 5 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise InputError(f'{where} needs a bbox of four finite numbers, x y w h, and a finite score.')
    return [{**row, 'image_id': number_of[row['image_id']]} for row in rows]


def check_same_dataset(first: Dataset, second: Dataset) -> None:
    """Raise an InputError unless two configs test on the same images, objects and classes."""
    for what in ('classes', 'category_ids'):
        ours, theirs = getattr(first, what), getattr(second, what)
        if ours != theirs:
            raise InputError(
                f'the two models have different {what}, {_differing(ours, theirs)}: only models with the same classes '
                'in the same order can be compared.'
            )
    ids, others = set(first.image_ids), set(second.image_ids)
    if ids != others:
        raise InputError(
            f'the two configs test on different images: {len(ids - others)} are only in the first and '
            f'{len(others - ids)} only in the second.'
        )
    if not (
        np.array_equal(first.label, second.label)
        and np.array_equal(first.boxes_xywh_px, second.boxes_xywh_px)
    ):
        raise InputError('the two configs test on the same images with different annotations.')


def _differing(ours: Sequence[Any], theirs: Sequence[Any]) -> str:
    """Describe the first difference between two lists."""
    if len(ours) != len(theirs):
        return f'{len(ours)} ({_listed(ours)}) and {len(theirs)} ({_listed(theirs)})'
    place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f'the first at index {place}: {ours[place]!r} and {theirs[place]!r}'


def _listed(values: Sequence[Any], limit: int = 6) -> str:
    return ', '.join(map(str, values[:limit])) + (
        f' and {len(values) - limit} more' if len(values) > limit else ''
    )


def _evaluate(dataset: Dataset, rows: list[dict[str, Any]]) -> COCOeval:
    """Run pycocotools' evaluation, with objects and detections numbered from 1.

    faster-coco-eval gives the same numbers, but does not expose the matches of individual detections.
    """
    objects = [{**row, 'id': number} for number, row in enumerate(dataset.coco['annotations'], start=1)]
    with contextlib.redirect_stdout(io.StringIO()):  # silence pycocotools
        truth, found = COCO(), COCO()
        truth.dataset, found.dataset = (
            {**dataset.coco, 'annotations': objects},
            {**dataset.coco, 'annotations': []},
        )
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows) if rows else found, 'bbox')
        evaluation.params.catIds = list(dataset.category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _matched(name: str, evaluation: COCOeval, rows: list[dict[str, Any]], dataset: Dataset) -> Run:
    """Read pycocotools' matches; it numbers rows and objects from 1."""
    params = evaluation.params
    threshold = int(np.flatnonzero(np.isclose(params.iouThrs, POSITIVE_IOU))[0])
    areas, images = len(params.areaRng), len(params.imgIds)
    state, truth = np.full(len(rows), FALSE), np.full(len(rows), -1)
    kept = np.zeros(len(rows), dtype=bool)
    for k in range(len(params.catIds)):
        for cell in evaluation.evalImgs[k * areas * images : k * areas * images + images]:  # all object sizes
            if cell is None:
                continue
            index = np.array(cell['dtIds'], dtype=int) - 1
            ignored, matched = cell['dtIgnore'][threshold], cell['dtMatches'][threshold].astype(int) - 1
            kept[index] = True
            state[index] = np.where(ignored, IGNORED, np.where(matched >= 0, FOUND, FALSE))
            truth[index] = np.where(ignored, -1, matched)
    label_of = {category_id: label for label, category_id in enumerate(dataset.category_ids)}
    run = Run(
        name,
        evaluation,
        np.array([row['image_id'] - 1 for row in rows], dtype=int),
        np.array([label_of[row['category_id']] for row in rows], dtype=int),
        np.array([row['score'] for row in rows], dtype=float),
        np.array([row['bbox'] for row in rows], dtype=float).reshape(-1, 4),
        state,
        truth,
    )
    order = np.lexsort((-run.scores, run.image))  # stable
    order = order[kept[order]]
    columns = ('image', 'label', 'scores', 'boxes_xywh_px', 'state', 'truth')
    return replace(run, **{column: getattr(run, column)[order] for column in columns})
