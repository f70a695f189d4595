"""Images of the report, each embedded once, with objects and detections drawn side by side."""

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from ddetr.datasets.transforms import LoadImageFromFile
from ddetr.utils.errors import InputError
from ddetr.visualization.charts import svg
from ddetr.visualization.labels import Place, label_text, place_labels, shorten

from .kinds import KINDS, Errors
from .runs import FOUND, IGNORED, Dataset, Run

WIDTH = 300  # of a picture, in page units
LONGEST_PX = 480  # of the embedded image
MAX_BOXES = 100  # detections per picture
LETTER, LINE_HEIGHT = 6.0, 14  # of the labels
MAX_LABEL = 24  # characters


class Box(NamedTuple):
    """A box to draw, in pixels of the image."""

    xywh_px: np.ndarray
    color: str  # a CSS variable
    label: str
    note: str  # tooltip
    dashed: bool = False


class Photo(NamedTuple):
    """An image for the page."""

    data: str  # base64 of a JPEG; empty if the file cannot be read
    size_px: tuple[int, int]  # (w, h) of the original


def read_photo(file: dict[str, Any], limit_bytes: int) -> Photo:
    """Read an image (of `Dataset.image_files`) as in testing, and shrink it until its JPEG fits the limit."""
    try:
        loaded = LoadImageFromFile().transform(dict(file))
    except (OSError, InputError, KeyError):
        return Photo('', (4, 3))
    assert loaded is not None
    image = loaded['img']
    size = image.shape[1], image.shape[0]
    scale = min(1.0, LONGEST_PX / max(size))
    while True:
        small = (
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
        )
        data = cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 82])[1].tobytes()
        if len(data) <= limit_bytes or max(small.shape) <= 32:
            return Photo(base64.b64encode(data).decode(), size)
        scale *= 0.75


def draw_photo(photo: Photo, name: str, boxes: Sequence[Box], first: bool) -> Markup:
    """Draw one picture; the first one of an image embeds it, others refer to it by `name`."""
    scale = WIDTH / photo.size_px[0]
    height = photo.size_px[1] * scale
    if not photo.data:
        content = Markup('<text x="{}" y="{:.0f}" class="mid">the image file cannot be read</text>')
        return svg(WIDTH, height, content.format(WIDTH / 2, height / 2), name, 'photo')
    if first:
        content = Markup(
            '<image id="{}" href="data:image/jpeg;base64,{}" width="{}" height="{:.1f}"/>'
        ).format(name, photo.data, WIDTH, height)
    else:
        content = Markup('<use href="#{}"/>').format(name)
    for box in boxes:
        content += _frame(box, scale)
    best_first = list(reversed(boxes))
    corners = np.reshape(
        [(*box.xywh_px[:2], *(box.xywh_px[:2] + box.xywh_px[2:])) for box in best_first], (-1, 4)
    )
    sizes = [(LETTER * len(shorten(box.label, MAX_LABEL)) + 6, LINE_HEIGHT) for box in best_first]
    places = place_labels(corners * scale, np.reshape(sizes, (-1, 2)), (WIDTH, height))
    for box, place in zip(best_first, places, strict=True):
        content += _label(box, place, scale) if place is not None else ''
    return svg(WIDTH, height, content, name, 'photo')


def truth_boxes(dataset: Dataset, image: int, run: Run, score_thr: float) -> list[Box]:
    """Return an image's objects, coloured by whether detections above a score find them; crowd regions are dashed."""
    found = run.found_truth(len(dataset.label), score_thr)
    boxes = []
    for g in np.flatnonzero(dataset.image == image):
        name = dataset.classes[dataset.label[g]]
        if dataset.crowd[g]:
            boxes.append(Box(dataset.boxes_xywh_px[g], '--muted', name, f'{name}, crowd region', True))
        else:
            color, note = ('--found', 'found') if found[g] else ('--missed', 'not found')
            boxes.append(Box(dataset.boxes_xywh_px[g], color, name, f'{name}, {note}', not found[g]))
    return boxes


def detection_boxes(dataset: Dataset, image: int, run: Run, errors: Errors, score_thr: float) -> list[Box]:
    """Return an image's `MAX_BOXES` best detections above a score, coloured by kind of error, best last."""
    kinds, boxes = list(KINDS), []
    for n in np.flatnonzero((run.image == image) & (run.scores >= score_thr))[:MAX_BOXES][::-1]:
        label = label_text(dataset.classes[run.label[n]], run.scores[n])
        if run.state[n] == FOUND:
            color, note = '--found', 'right'
        elif run.state[n] == IGNORED:
            color, note = '--muted', 'in a crowd region'
        else:
            color, note = f'--{kinds[errors.kind[n]]}', kinds[errors.kind[n]]
        boxes.append(Box(run.boxes_xywh_px[n], color, label, f'{label}, {note}'))
    return boxes


def _frame(box: Box, scale: float) -> Markup:
    x, y, w, h = box.xywh_px * scale
    dash = '5 3' if box.dashed else 'none'
    shape = Markup('<rect x="{0:.1f}" y="{1:.1f}" width="{2:.1f}" height="{3:.1f}" ')
    halo = Markup('class="halo"/>')
    front = Markup('class="box" style="stroke:var({4});stroke-dasharray:{5}"><title>{6}</title></rect>')
    return (shape + halo + shape + front).format(x, y, w, h, box.color, dash, box.note)


def _label(box: Box, place: Place, scale: float) -> Markup:
    x1, y1, x2, y2 = place.xyxy
    lead = Markup()
    if not place.attached:
        middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
        corner, sides = box.xywh_px[:2] * scale, box.xywh_px[2:] * scale
        lead = Markup('<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}" style="stroke:var({})"/>').format(
            *middle, *middle.clip(corner, corner + sides), box.color
        )
    return lead + Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" rx="2" style="fill:var({})"/>'
        '<text x="{:.1f}" y="{:.1f}" class="tag">{}</text>'
    ).format(x1, y1, x2 - x1, LINE_HEIGHT, box.color, x1 + 3, y1 + 10.5, shorten(box.label, MAX_LABEL))
