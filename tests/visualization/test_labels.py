"""Labels on the layouts of real images and on crowded ones."""

import json
from collections import defaultdict

import numpy as np
import pytest

from ddetr.visualization.labels import place_labels

FONT_PX, HEIGHT_PX = 13, 20  # about as drawn on 720 x 480


def _area_shared(places) -> float:
    """Number of pixels covered by two labels, summed over pairs."""
    low = np.maximum(places[:, None, :2], places[None, :, :2])
    high = np.minimum(places[:, None, 2:], places[None, :, 2:])
    return float(np.triu((high - low).clip(0).prod(-1), 1).sum())


def _coco_layouts(coco_root):
    """Boxes and sizes of their labels, and the picture's size, of each image."""
    data = json.loads((coco_root / 'annotations/instances_val2017.json').read_text())
    names = {category['id']: category['name'] for category in data['categories']}
    rows = defaultdict(list)
    for row in data['annotations']:
        rows[row['image_id']].append(row)
    for image in data['images']:
        scale = 480 / min(image['width'], image['height'])
        boxes = np.array([row['bbox'] for row in rows[image['id']]], dtype=float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sizes = [(0.6 * FONT_PX * len(names[r['category_id']]) + 8, HEIGHT_PX) for r in rows[image['id']]]
        yield boxes * scale, np.reshape(sizes, (-1, 2)), (image['width'] * scale, image['height'] * scale)


def test_no_label_covers_another_on_real_images(coco_root):
    labels = placed = attached = above = 0
    naive = 0.0
    for boxes, sizes, picture in _coco_layouts(coco_root):
        places = place_labels(boxes, sizes, picture)
        found = [place for place in places if place is not None]
        corners = np.reshape([place.xyxy for place in found], (-1, 4))
        assert _area_shared(corners) == 0
        assert (corners >= 0).all()
        assert (corners[:, 2:] <= np.array(picture) + 1e-6).all()
        labels, placed = labels + len(places), placed + len(found)
        attached += sum(place.attached for place in found)
        above += sum(bool(np.isclose(p.xyxy[3], b[1])) for p, b in zip(places, boxes, strict=True) if p)
        simple = boxes[:, :2] - [0, HEIGHT_PX]
        naive += _area_shared(np.concatenate([simple, simple + sizes], 1))
    assert labels > 800
    assert placed == labels
    assert attached > 0.95 * labels
    assert above > 0.6 * labels
    assert naive > 10_000  # all of them above their boxes cover each other


def test_labels_are_omitted_rather_than_overlapping_in_crowds():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 60, (300, 2))], 1)
    places = place_labels(boxes, np.full((300, 2), (60, 18)), (460, 460))
    found = np.array([place.xyxy for place in places if place is not None])
    assert _area_shared(found) == 0
    assert 80 < len(found) < 300
    assert places[0].attached  # the first one chooses first
    for box, place in zip(boxes, places, strict=True):
        if place is not None:
            gap = np.maximum(np.maximum(place.xyxy[:2] - box[2:], box[:2] - place.xyxy[2:]), 0)
            assert np.hypot(*gap) <= (0.01 if place.attached else 8 * 18)


@pytest.mark.parametrize(
    'boxes', [[[-50, -50, -10, -10]], [[0, 0, 100, 100]], [[90, 90, 500, 500]], [[5, 5, 5, 5]]]
)
def test_labels_stay_inside_the_picture(boxes):
    (place,) = place_labels(np.array(boxes), np.array([[40, 15]]), (100, 100))
    assert (place.xyxy >= 0).all()
    assert (place.xyxy <= 100).all()


def test_label_larger_than_the_picture_is_not_placed():
    assert place_labels(np.array([[0, 0, 9, 9]]), np.array([[40, 15]]), (30, 100)) == [None]
    assert place_labels(np.zeros((0, 4)), np.zeros((0, 2)), (30, 100)) == []
