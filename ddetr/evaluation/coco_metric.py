"""COCO average precision, computed by pycocotools or, if installed, faster-coco-eval."""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from ddetr.datasets.coco_format import category_ids_of, read_coco
from ddetr.registry import METRICS
from ddetr.structures import Annotations
from ddetr.utils.errors import InputError
from ddetr.utils.files import write_json
from ddetr.utils.tables import render_table

from .backend import COCO, new_evaluation

AP_ITEMS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')  # in the order of pycocotools' table


@dataclass(frozen=True)  # not a NamedTuple: mmengine rebuilds tuples when it gathers results
class ImageDetections:
    """Detections and ground truth of one image, on the CPU."""

    img_id: int | str
    img_path: str  # together with the id, identifies images of concatenated datasets
    boxes_xyxy_px: np.ndarray  # (N, 4), pixels of the original image
    scores: np.ndarray  # (N,)
    labels: np.ndarray  # (N,), indices into the dataset's classes
    truth: Annotations | None


@METRICS.register_module()
class CocoMetric(BaseMetric):
    """COCO box AP and AR: the twelve rows of pycocotools' table, and optionally AP per class.

    Ground truth comes from the samples (`annotations`, see `PackDetInputs`), for datasets in any format, or from a
    COCO annotation file. Both give identical results for the same dataset.

    Results are `coco/bbox_mAP`, `_mAP_50`, `_mAP_75`, `_mAP_s`, `_mAP_m`, `_mAP_l` in [0, 1], or -1 without ground
    truth. With `classwise`, they include `coco/<class>_precision`.

    Only images from the data loader count, so a subset of a dataset can be evaluated.

    Args:
        ann_file: COCO annotation file to use instead of the samples' annotations; read once.
        metric: 'bbox' or `['bbox']`.
        classwise: Whether to log a table with the AP of every class.
        proposal_nums: Three ascending limits of detections per image for AR. The largest also applies to AP_50, AP_75
            and AP by size. AP itself uses 100, which must be one of them.
        iou_thrs: IoU thresholds, instead of 0.50:0.05:0.95.
        metric_items: Results to return, out of the six above and 'AR@n' (n from `proposal_nums`), 'AR_s@n', 'AR_m@n',
            'AR_l@n' (n the last of them).
        format_only: Whether to only write the predictions, for test sets without public annotations.
        outfile_prefix: Prefix of the prediction file `{outfile_prefix}.bbox.json`, in COCO result format.
        backend_args: Arguments of mmengine's file backend, for `ann_file`.
        collect_device: Device on which processes gather their results, 'cpu' or 'gpu'.
        prefix: Prefix of the result names; default 'coco'.

    Raises:
        InputError: The annotation file is missing, malformed or lacks a class of the dataset; neither a file nor
            annotations are available; arguments are inconsistent; predictions refer to unknown images or labels.
    """

    default_prefix = 'coco'

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | Sequence[str] = 'bbox',
        classwise: bool = False,
        proposal_nums: Sequence[int] = (1, 10, 100),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        backend_args: dict | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ):
        super().__init__(collect_device=collect_device, prefix=prefix)
        if metric not in ('bbox', ['bbox'], ('bbox',)):
            raise InputError(f"CocoMetric(metric={metric!r}): only 'bbox' is supported")
        if format_only and outfile_prefix is None:
            raise InputError(
                'CocoMetric(format_only=True) needs outfile_prefix, the output path of the predictions'
            )
        limits = list(proposal_nums)
        if len(limits) != 3 or limits != sorted(limits) or 100 not in limits:
            raise InputError(f'CocoMetric({proposal_nums=}): use three ascending numbers, one of them 100')
        self.proposal_nums = limits
        # the twelve values of pycocotools, in its order
        self.items = [*AP_ITEMS, *(f'AR@{n}' for n in limits), *(f'AR_{size}@{limits[-1]}' for size in 'sml')]
        if unknown := set(metric_items or ()) - set(self.items):
            raise InputError(f'CocoMetric(metric_items): unknown {sorted(unknown)}. Choose from {self.items}')
        self.metric_items = list(metric_items or AP_ITEMS)
        self.classwise = classwise
        self.iou_thrs = None if iou_thrs is None else np.atleast_1d(np.array(iou_thrs, dtype=float))
        self.format_only = format_only
        self.outfile_prefix = outfile_prefix
        self.ann_file = ann_file
        # fail early: read the file now, not after the first epoch
        self._file = None if ann_file is None else read_coco(ann_file, not format_only, backend_args)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Store the `pred_instances` and `annotations` of a batch, both in pixels of the original image."""
        for sample in data_samples:
            found = sample['pred_instances']
            boxes, scores = (found[key].detach().float().cpu().numpy() for key in ('bboxes', 'scores'))
            image = (sample['img_id'], str(sample.get('img_path')))
            truth = sample.get('annotations')
            self.results.append(ImageDetections(*image, boxes, scores, found['labels'].cpu().numpy(), truth))

    def compute_metrics(self, results: list[ImageDetections]) -> dict[str, float]:
        """Evaluate the detections of all images; see the class."""
        assert self.dataset_meta is not None
        classes = self.dataset_meta['classes']
        if self._file is not None:
            category_ids = category_ids_of(self._file, classes, str(self.ann_file))
        else:
            category_ids = list(self.dataset_meta.get('category_ids') or range(1, len(classes) + 1))
        logger = MMLogger.get_current_instance()
        if self.outfile_prefix is not None:
            path = f'{self.outfile_prefix}.bbox.json'
            write_json(rows := _coco_rows(results, category_ids), path)
            logger.info(f'{len(rows)} predictions written to {path}')
        if self.format_only:
            return {}
        truth, ids = self._truth_of_file(results) if self._file else truth_of_samples(results, category_ids)
        if not truth['annotations']:
            logger.warning('the ground truth contains no objects: every AP and AR is -1')
        last_of = dict(zip(ids, results, strict=True))  # images that were tested twice count once
        rows = _coco_rows(last_of.values(), category_ids, last_of)
        evaluation = self._evaluation(truth, rows, category_ids, sorted(set(ids)))
        with contextlib.redirect_stdout(io.StringIO()) as summary:
            evaluation.summarize()
        table = summary.getvalue().splitlines()[: len(self.items)]  # faster-coco-eval adds two rows
        logger.info('\n' + '\n'.join(table))
        numbers = dict(zip(self.items, evaluation.stats.tolist(), strict=True))
        metrics = {f'bbox_{name}': numbers[name] for name in self.metric_items}
        if self.classwise:
            aps_of = class_table(evaluation, dict(zip(category_ids, classes, strict=True)))
            cells = [(name, *('-' if v < 0 else f'{v:.3f}' for v in aps)) for name, aps in aps_of.items()]
            header = ('class', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl')
            logger.info('\n' + render_table(header, cells, 'text'))
            metrics |= {f'{name}_precision': aps[0] for name, aps in aps_of.items()}
        return metrics

    def _truth_of_file(self, results: list[ImageDetections]) -> tuple[dict, list[Any]]:
        """Ground truth from the file, and the image id of each result."""
        assert self._file is not None
        image_ids = [detections.img_id for detections in results]
        tested, listed = set(image_ids), {image['id'] for image in self._file['images']}
        if absent := tested - listed:
            raise InputError(
                f'image id {min(absent)} was tested, but is not in {self.ann_file}: set ann_file of CocoMetric to '
                'the annotation file of the test dataset'
            )
        if len(tested) < len(listed):
            MMLogger.get_current_instance().info(
                f'evaluating {len(tested)} of {len(listed)} images in {self.ann_file}'
            )
        return self._file, image_ids

    def _evaluation(
        self, ground_truth: dict, rows: list[dict], category_ids: list[int], image_ids: list[int]
    ) -> Any:
        """Accumulated `COCOeval` of `rows`."""
        with contextlib.redirect_stdout(io.StringIO()):  # silence pycocotools
            truth = _index(ground_truth, ground_truth['annotations'])
            found = _index(ground_truth, rows)
            evaluation = new_evaluation(truth, found)
            evaluation.params.imgIds, evaluation.params.catIds = image_ids, category_ids
            evaluation.params.maxDets = self.proposal_nums
            if self.iou_thrs is not None:
                evaluation.params.iouThrs = self.iou_thrs
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation


def _index(ground_truth: dict, annotations: list[dict]) -> COCO:
    """Index objects or detections with ids from 1, because COCOeval never matches an object with id 0."""
    coco = COCO()
    numbered = [
        {'area': found['bbox'][2] * found['bbox'][3], 'iscrowd': 0, **found, 'id': i}
        for i, found in enumerate(annotations, start=1)
    ]
    coco.dataset = {**ground_truth, 'annotations': numbered}
    coco.createIndex()
    return coco


def truth_of_samples(results: list[ImageDetections], category_ids: list[int]) -> tuple[dict, list[int]]:
    """Convert the samples' ground truth to COCO format. Return it with the image number of each result.

    Images are numbered in the order of their ids, because pycocotools ranks detections with equal scores in the order
    of the images.
    """
    if any(detections.truth is None for detections in results):
        raise InputError(
            "CocoMetric has no ground truth: the samples have no annotations ('instances' in the dataset's items). "
            'Set ann_file'
        )
    # sort by type first: concatenated datasets may mix integer and string ids
    keys = [(type(d.img_id).__name__, d.img_id, d.img_path) for d in results]
    number_of = {key: number for number, key in enumerate(sorted(set(keys)), start=1)}
    annotations = []
    for key, found in dict(zip(keys, results, strict=True)).items():
        assert found.truth is not None
        columns = (found.truth.labels, found.truth.boxes_xywh_px, found.truth.areas, found.truth.crowd)
        for label, box, area, crowd in zip(*(column.tolist() for column in columns), strict=True):
            row = {'category_id': category_ids[label], 'bbox': box, 'area': area, 'iscrowd': int(crowd)}
            annotations.append({'image_id': number_of[key], **row})
    truth = {
        'images': [{'id': number} for number in number_of.values()],
        'categories': [{'id': category_id} for category_id in category_ids],
        'annotations': annotations,
    }
    return truth, [number_of[key] for key in keys]


def _coco_rows(
    results: Iterable[ImageDetections], category_ids: list[int], image_ids: Iterable | None = None
) -> list[dict]:
    """Detections in COCO result format: x, y, w, h in pixels and category ids; `image_ids` replace the samples' ids."""
    rows = []
    results = list(results)
    for image_id, found in zip(image_ids or [found.img_id for found in results], results, strict=True):
        labels = found.labels.tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(category_ids):
            raise InputError(
                f'the detector predicted label {max(labels)}, but the dataset has {len(category_ids)} classes '
                f"(labels from 0): set the head's num_classes={len(category_ids)}"
            )
        boxes_xywh = found.boxes_xyxy_px.copy()  # (N, 4)
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        rows += [
            {'image_id': image_id, 'category_id': category_ids[label], 'bbox': box, 'score': score}
            for label, box, score in zip(labels, boxes_xywh.tolist(), found.scores.tolist(), strict=True)
        ]
    return rows


def class_table(evaluation: Any, name_of: dict[int, str]) -> dict[str, list[float]]:
    """Values of `AP_ITEMS` by class name, from an accumulated evaluation; -1 without ground truth.

    `name_of` maps category ids to names. The mean over classes with ground truth equals pycocotools' result.
    """
    params = evaluation.params
    precision = evaluation.eval['precision']  # (IoU thresholds, recalls, classes, areas, detection limits)
    limit = params.maxDets.index(100)

    def mean(values: np.ndarray) -> float:
        measured = values[values > -1]
        return float(measured.mean()) if measured.size else -1.0

    def at_iou(threshold: float) -> np.ndarray:
        return precision[np.isclose(params.iouThrs, threshold)]

    return {
        name_of[category_id]: [
            mean(precision[:, :, k, 0, limit]),
            mean(at_iou(0.5)[:, :, k, 0, -1]),
            mean(at_iou(0.75)[:, :, k, 0, -1]),
            *(mean(precision[:, :, k, area, -1]) for area in (1, 2, 3)),
        ]
        for k, category_id in enumerate(params.catIds)  # sorted by COCOeval.evaluate
    }
