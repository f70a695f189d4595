"""Check that box coordinates follow the dataset's format."""

from collections.abc import Sequence

import numpy as np

from ddetr.analysis.examples import Example

from .contents import Array
from .findings import Finding, Measured, Unchecked
from .subject import Subject, Written

TOLERANCE_PX = 2.0  # annotation tools count pixels from 0 or 1 and round
MANY = 0.15  # fraction of boxes above which a fault is systematic
NEARLY_ALL = 0.97


def check_boxes(subject: Subject) -> Measured:
    """Compare boxes with their images, both as annotated and as the model sees them."""
    written = [box for box in subject.written if box.size_wh is not None]
    seen = [box for example in subject.examples for box in _seen(example)]
    if not seen and not written:
        raise Unchecked('no image of the training set has a box')
    facts: list[str] = []
    findings: list[Finding] = []
    for boxes, where in ((written, 'in the annotations'), (seen, 'in the images that the model sees')):
        if boxes:
            fault, fact = judge(boxes, where)
            facts.append(fact)
            findings += [] if fault is None or findings else [fault]
    if not findings and len(seen) == 0:
        findings.append(
            Finding(
                'boxes',
                'the model sees no box: the pipeline or the dataset drops them all',
                f'{len(written)} boxes in the annotations, 0 in {len(subject.examples)} images after the pipeline',
                'check LoadAnnotations, the crops of train_dataloader.dataset.pipeline and metainfo.classes.',
            )
        )
    return Measured(tuple(facts), tuple(findings))


def judge(written: Sequence[Written], where: str) -> tuple[Finding | None, str]:
    """Return the fault shared by most boxes, if any, and the measurements."""
    boxes = np.array([box.box_xyxy_px for box in written], dtype=float)  # (N, 4)
    sizes = np.array([box.size_wh for box in written], dtype=float)  # (N, 2)
    start, end = boxes[:, :2], boxes[:, 2:]
    extent = end - start
    outside = _share((end > sizes + TOLERANCE_PX) | (start < -TOLERANCE_PX), any_side=True)
    empty = _share(extent <= 0, any_side=True)
    fact = f'{len(boxes)} boxes {where}: {outside:.1%} leave their image, {empty:.1%} have no area'
    example = f'the first has x1 y1 x2 y2 = {_numbers(boxes[0])} in an image of {_numbers(sizes[0])} pixels'
    if np.abs(boxes).max() <= 1.5:
        title = 'the boxes are fractions of the image where pixels are expected'
        cure = 'multiply them by the width and the height of the image, or read them with a dataset of that format.'
        return Finding('boxes', title, f'no number is above {np.abs(boxes).max():.2f}; {example}', cure), fact
    if outside > MANY / 3:
        corners = _share((extent >= start - TOLERANCE_PX) & (extent <= sizes + TOLERANCE_PX))
        if corners >= NEARLY_ALL and outside > MANY:
            return _as_corners(outside, corners, example, where), fact
        centred = _share((start - extent / 2 >= -TOLERANCE_PX) & (start + extent / 2 <= sizes + TOLERANCE_PX))
        if centred >= NEARLY_ALL:
            return _as_centres(outside, centred, example, where), fact
    if empty > MANY:
        title = (
            'boxes end before they start: width and height are read as a second corner (xywh taken for xyxy)'
        )
        cure = 'write x1 y1 x2 y2, or use a dataset whose format is x y width height.'
        return Finding(
            'boxes', title, f'{empty:.0%} of {len(boxes)} boxes {where} have no area; {example}', cure
        ), fact
    if outside > MANY:
        title = 'boxes do not fit their images'
        cure = 'check the image sizes in the annotations, and whether the boxes belong to other images.'
        return Finding(
            'boxes', title, f'{outside:.0%} of {len(boxes)} boxes {where} leave their image; {example}', cure
        ), fact
    return None, fact


def _as_corners(outside: float, corners: float, example: str, where: str) -> Finding:
    return Finding(
        'boxes',
        'the boxes are written as x1 y1 x2 y2 where x y width height is expected (xyxy written as xywh)',
        f'{outside:.0%} of the boxes {where} leave their image; read as x1 y1 x2 y2, {corners:.0%} fit; {example}',
        'write bbox as [x1, y1, x2 - x1, y2 - y1] in the annotation file.',
    )


def _as_centres(outside: float, centred: float, example: str, where: str) -> Finding:
    return Finding(
        'boxes',
        'the boxes are written by their centres where their upper left corners are expected (cxcywh as xywh)',
        f'{outside:.0%} of the boxes {where} leave their image; read as centres, {centred:.0%} fit; {example}',
        'write bbox as [cx - width / 2, cy - height / 2, width, height] in the annotation file.',
    )


def _seen(example: Example) -> list[Written]:
    """Return the boxes of the model's input image with its flip undone."""
    height, width = example.inputs.shape[-2:]
    boxes = example.boxes_xyxy_px.copy()
    direction = example.sample.get('flip_direction') or '' if example.sample.get('flip') else ''
    if direction in ('horizontal', 'diagonal'):
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    if direction in ('vertical', 'diagonal'):
        boxes[:, [1, 3]] = height - boxes[:, [3, 1]]
    return [Written(tuple(box), (width, height)) for box in boxes]


def _share(holds: Array, any_side: bool = False) -> float:
    """Return the fraction of boxes for which the condition holds in both directions, or in any."""
    return float((holds.any(1) if any_side else holds.all(1)).mean())


def _numbers(values: Array) -> str:
    return (
        ' x '.join(f'{v:.0f}' for v in values) if len(values) == 2 else ' '.join(f'{v:.1f}' for v in values)
    )
