"""Write detections to files: annotated images, JSON per image, COCO JSON, YOLO text files, CSV."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddetr.structures import DetDataSample
from ddetr.utils.coco_classes import COCO_CLASSES, COCO_IDS
from ddetr.utils.errors import InputError
from ddetr.utils.files import picture_name, unfinished_file, write_atomically, write_json
from ddetr.utils.names import RESULT_FORMATS

from .results import detection_rows

if TYPE_CHECKING:
    from ddetr.visualization import DetLocalVisualizer

Write = Callable[[str, np.ndarray, DetDataSample], None]
"""Function that writes the detections of one image: (name, (H, W, 3) BGR image, selected sample on the CPU)."""


class Target(NamedTuple):
    """Output folder, and the metadata that writers need."""

    out_dir: Path
    visualizer: 'DetLocalVisualizer'
    classes: Sequence[str]
    category_ids: Sequence[int]  # category ids by label, for COCO JSON

    def path(self, name: str, suffix: str) -> Path:
        """Output file for one image. `name` keeps its suffix, so that cat.jpg and cat.png do not collide."""
        return self.out_dir / f'{name}{suffix}'

    def picture(self, name: str) -> Path:
        """Output file of an annotated image."""
        return self.out_dir / picture_name(name)


@contextmanager
def open_writers(formats: Sequence[str], target: Target) -> Iterator[Write]:
    """Yield a function that writes the detections of an image in all given `RESULT_FORMATS`.

    Files that cover all images appear at the end of the block, and only if it raises no exception.

    Raises:
        InputError: Unknown format.
    """
    if unknown := [name for name in formats if name not in RESULT_FORMATS]:
        raise InputError(f'format {unknown[0]!r} must be one of {", ".join(RESULT_FORMATS)}.')
    with ExitStack() as stack:
        writers = [stack.enter_context(WRITERS[name](target)) for name in dict.fromkeys(formats)]

        def write_all(name: str, image: np.ndarray, sample: DetDataSample) -> None:
            for write in writers:
                write(name, image, sample)

        yield write_all


def category_ids_for(meta: Mapping[str, Any]) -> Sequence[int]:
    """Category ids by label: those of the training annotations, otherwise COCO's for its classes, otherwise from 1."""
    classes = meta['classes']
    if len(ids := meta.get('category_ids') or ()) == len(classes):
        return ids
    return COCO_IDS if tuple(classes) == COCO_CLASSES else range(1, len(classes) + 1)


@contextmanager
def _pictures(target: Target) -> Iterator[Write]:
    def write(name: str, image: np.ndarray, sample: DetDataSample) -> None:
        picture = target.visualizer.draw_instances(image[..., ::-1], sample.pred_instances.numpy())
        target.visualizer.write(picture, target.picture(name))

    yield write


@contextmanager
def _json(target: Target) -> Iterator[Write]:
    def write(name: str, image: np.ndarray, sample: DetDataSample) -> None:
        size = {'width': image.shape[1], 'height': image.shape[0]}
        rows = detection_rows(sample, target.classes)
        write_json({'image': name, **size, 'detections': rows}, target.path(name, '.json'))

    yield write


@contextmanager
def _csv(target: Target) -> Iterator[Write]:
    with unfinished_file(target.out_dir / 'detections.csv') as path, path.open('w', newline='') as file:
        lines = csv.writer(file, lineterminator='\n')
        lines.writerow(['image', 'label', 'class', 'score', 'x1', 'y1', 'x2', 'y2'])

        def write(name: str, image: np.ndarray, sample: DetDataSample) -> None:
            for row in detection_rows(sample, target.classes):
                lines.writerow([name, row['label'], row['class'], row['score'], *row['bbox']])

        yield write


@contextmanager
def _coco(target: Target) -> Iterator[Write]:
    """Dataset in COCO format, whose `annotations` have scores and can also be used as a result list."""
    images: list[dict[str, Any]] = []
    with unfinished_file(target.out_dir / 'detections.coco.json') as path, path.open('w') as file:
        file.write('{"annotations": [')
        count = 0

        def write(name: str, image: np.ndarray, sample: DetDataSample) -> None:
            nonlocal count
            height, width = image.shape[:2]
            images.append({'id': len(images) + 1, 'file_name': name, 'width': width, 'height': height})
            for row in detection_rows(sample, target.classes):
                x1, y1, x2, y2 = row['bbox']
                annotation = {
                    'id': count + 1,
                    'image_id': len(images),
                    'category_id': int(target.category_ids[row['label']]),
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': (x2 - x1) * (y2 - y1),
                    'iscrowd': 0,
                    'score': row['score'],
                }
                file.write((',\n' if count else '\n') + json.dumps(annotation))
                count += 1

        yield write
        pairs = zip(target.category_ids, target.classes, strict=True)
        categories = [{'id': int(number), 'name': name} for number, name in pairs]
        file.write(f'\n], "images": {json.dumps(images)}, "categories": {json.dumps(categories)}}}\n')


@contextmanager
def _yolo(target: Target) -> Iterator[Write]:
    """labels/NAME.txt without the image's suffix, in Ultralytics' format: label, box, score."""
    names = ''.join(f'{name}\n' for name in target.classes)
    write_atomically(target.out_dir / 'classes.txt', lambda path: path.write_text(names))
    image_of: dict[str, str] = {}  # image name by text file name

    def write(name: str, image: np.ndarray, sample: DetDataSample) -> None:
        stem = str(PurePath(name).with_suffix(''))
        if image_of.setdefault(stem, name) != name:  # cat.png after cat.jpg
            stem = name
        height, width = image.shape[:2]
        lines = []
        for row in detection_rows(sample, target.classes):
            x1, y1, x2, y2 = row['bbox']
            box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            numbers = ' '.join(f'{value:.6f}' for value in (*box, row['score']))
            lines.append(f'{row["label"]} {numbers}\n')
        text = ''.join(lines)
        write_atomically(target.out_dir / 'labels' / f'{stem}.txt', lambda path: path.write_text(text))

    yield write


WRITERS = {'picture': _pictures, 'json': _json, 'coco': _coco, 'yolo': _yolo, 'csv': _csv}
