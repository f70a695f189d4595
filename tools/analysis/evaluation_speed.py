"""Measure time and memory of COCO evaluation with pycocotools and faster-coco-eval, on random boxes.

    python tools/analysis/evaluation_speed.py --images 5000 --detections 100

Each library runs `CocoMetric` on the same results in a separate process. The ground truth has 7 objects per image, as
in COCO val2017, from 80 classes; a third of the detections are close to one. The results of both must agree.
"""

import argparse
import multiprocessing
import resource
import time
from typing import NamedTuple

import numpy as np

from ddetr.evaluation import CocoMetric, backend, coco_metric
from ddetr.evaluation.coco_metric import AP_ITEMS, ImageDetections
from ddetr.structures import Annotations
from ddetr.utils.cli import run_cli
from ddetr.utils.tables import FORMATS, render_table

NUM_CLASSES, OBJECTS = 80, 7
LIBRARIES = ('pycocotools', 'faster-coco-eval')


class Measured(NamedTuple):
    """Evaluation by one library."""

    seconds: float
    megabytes: float  # increase of the peak resident memory
    metrics: dict[str, float]


def random_results(images: int, detections: int) -> list[ImageDetections]:
    """Random objects and detections in images of 640 x 480 pixels, as collected by the metric."""
    rng = np.random.default_rng(0)
    results = []
    for number in range(images):
        corners = rng.random((OBJECTS, 2)) * (500, 350)
        boxes = np.concatenate([corners, corners + 4 + rng.random((OBJECTS, 2)) ** 2 * 250], 1).astype(
            np.float32
        )
        labels = rng.integers(NUM_CLASSES, size=OBJECTS)
        sides = boxes[:, 2:] - boxes[:, :2]
        truth = Annotations(
            labels, np.concatenate([boxes[:, :2], sides], 1), sides.prod(1), rng.random(OBJECTS) < 0.01
        )
        near = rng.integers(OBJECTS, size=detections)
        guesses = boxes[near] + rng.normal(0, 4, (detections, 4)).astype(np.float32)
        guessed = np.where(
            rng.random(detections) < 0.33, labels[near], rng.integers(NUM_CLASSES, size=detections)
        )
        results.append(
            ImageDetections(number, f'{number}.jpg', guesses, rng.random(detections), guessed, truth)
        )
    return results


def measure(library: str, images: int, detections: int) -> Measured:
    """Evaluate with one library in this process."""
    if library == 'pycocotools':
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        vars(backend).update(COCOeval_faster=None, COCOeval=COCOeval)
        vars(coco_metric).update(COCO=COCO)
    metric, results = CocoMetric(), random_results(images, detections)
    metric.dataset_meta = {'classes': [str(label) for label in range(NUM_CLASSES)]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    metrics = metric.compute_metrics(results)
    seconds = time.perf_counter() - start
    return Measured(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, metrics)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', type=int, default=5000, help='number of images (default: %(default)s)')
    parser.add_argument(
        '--detections', type=int, default=100, help='detections per image (default: %(default)s)'
    )
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    found = {}
    for library in LIBRARIES:
        with multiprocessing.get_context('spawn').Pool(1) as process:
            found[library] = process.apply(measure, (library, args.images, args.detections))
    for item in AP_ITEMS:
        values = [one.metrics[f'bbox_{item}'] for one in found.values()]
        assert abs(values[0] - values[1]) < 1e-12, (item, values)
    slowest = found[LIBRARIES[0]].seconds
    rows = [
        (
            name,
            f'{one.seconds:.1f}',
            f'{one.seconds / slowest:.2f}',
            f'{one.megabytes:.0f}',
            f'{one.metrics["bbox_mAP"]:.6f}',
        )
        for name, one in found.items()
    ]
    print(render_table(('library', 'seconds', 'ratio', 'MiB more', 'AP'), rows, args.format))


if __name__ == '__main__':
    run_cli(main)
