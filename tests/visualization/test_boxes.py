"""Drawn boxes and labels, measured in the pictures."""

from itertools import product

import numpy as np
import pytest
from mmengine.structures import InstanceData

from ddetr.visualization import DetLocalVisualizer
from ddetr.visualization.boxes import BoxStyle, draw_boxes
from ddetr.visualization.colors import class_color, contrast, text_color_on
from ddetr.visualization.contact_sheet import ContactSheet


def _label_area(picture, color) -> np.ndarray:
    """The label, cut out: the rows that are mostly of its colour, where its text is black or white."""
    same = (picture == color).all(-1)
    ys, xs = np.nonzero(same)
    return picture[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def test_text_has_a_contrast_of_4_5_on_every_colour():
    colors = [*product(range(0, 256, 15), repeat=3), *(class_color(label) for label in range(1000))]
    assert min(contrast(text_color_on(color), color) for color in colors) >= 4.5
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)  # WCAG's own example


@pytest.mark.parametrize('background', [0, 128, 255])
@pytest.mark.parametrize('label', [0, 1, 6])
def test_a_drawn_label_is_text_on_its_colour_whatever_is_behind(background, label):
    image = np.full((480, 640, 3), background, dtype=np.uint8)
    color = class_color(label)
    picture = draw_boxes(image, np.array([[100, 200, 140, 240]]), ['wwwwwww 0.99'], [color])
    drawn = picture[150:200, 96:300]
    area = _label_area(drawn, color)
    assert area.shape[0] >= 15
    shades = area.reshape(-1, 3).astype(int)
    text = np.array(text_color_on(color))
    assert (np.abs(shades - text).max(1) < 40).sum() > 60  # strokes
    assert (shades == color).all(1).mean() > 0.5
    # between the two only: nothing of the image shines through
    spread = text - color
    along = ((shades - color) @ spread) / (spread @ spread)
    assert np.abs(shades - (color + along[:, None] * spread)).max() < 8


@pytest.mark.parametrize(('side', 'share'), [(100, 1 / 60), (640, 1 / 60), (4000, 1 / 80)])
def test_labels_are_legible_at_every_size(side, share):
    image = np.full((side * 2 // 3, side, 3), 90, dtype=np.uint8)
    boxes = np.array([[0.3 * side, 0.3 * side, 0.5 * side, 0.4 * side]])
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = {'classes': ('HHH',)}
    picture = visualizer.draw_instances(image, InstanceData(bboxes=boxes, labels=np.array([0])))
    text = np.abs(picture.astype(int) - text_color_on(class_color(0))).max(-1) < 70
    rows = np.nonzero(text.any(1))[0]
    capital = rows.max() - rows.min() + 1
    assert capital >= 8  # pixels of the picture
    assert capital >= share * picture.shape[0] * 0.95  # and of it on a screen
    line = (picture[:, picture.shape[1] * 4 // 10] == class_color(0)).all(-1).sum() / 2
    assert line >= max(2, picture.shape[0] / 400)


def test_lines_stand_out_from_a_background_of_their_colour():
    color = class_color(0)
    image = np.full((480, 640, 3), color, dtype=np.uint8)
    picture = draw_boxes(image, np.array([[100, 100, 300, 300]]), [''], [color])
    column = picture[200, 90:110].astype(int)
    assert (np.abs(column - color).sum(1) > 100).any()
    assert (image == color).all()  # the caller's array is left alone


def test_boxes_may_be_filled():
    image = np.full((480, 640, 3), 100, dtype=np.uint8)
    boxes, colors = np.array([[100, 100, 300, 300]]), [(200, 0, 0)]
    thin = draw_boxes(image, boxes, ['a'], colors)
    filled = draw_boxes(image, boxes, ['a'], colors, BoxStyle(fill=0.25))
    assert thin[200, 200].tolist() == [100, 100, 100]
    assert filled[200, 200].tolist() == [125, 75, 75]
    assert filled[50, 50].tolist() == [100, 100, 100]


def test_boxes_beyond_the_image_are_drawn_at_its_border():
    image = np.full((480, 640, 3), 100, dtype=np.uint8)
    picture = draw_boxes(image, np.array([[-80, -80, 900, 900]]), [''], [(255, 0, 0)])
    assert picture.shape == image.shape
    for y, x in ((1, 300), (478, 300), (200, 1), (200, 638)):
        assert (picture[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] == [255, 0, 0]).all(-1).any(), (y, x)


def test_a_class_has_one_colour_in_every_picture():
    image = np.full((300, 400, 3), 90, dtype=np.uint8)
    truth = InstanceData(bboxes=np.array([[50.0, 60, 200, 200]]), labels=np.array([7]))
    found = InstanceData(**truth, scores=np.array([0.9]))
    sheet = ContactSheet(tuple('abcdefgh'))
    sheet.add(image, truth.bboxes, truth.labels)
    visualizer = DetLocalVisualizer('other')
    pictures = [
        sheet.pictures[0],
        visualizer.draw_instances(image, truth),
        visualizer.draw_instances(image, found),
    ]
    for picture in pictures:
        assert (picture == class_color(7)).all(-1).sum() > 300
    assert len({class_color(label) for label in range(80)}) == 80
    assert class_color(1, [(1, 2, 3), (4, 5, 6)]) == (4, 5, 6)
    assert class_color(2, [(1, 2, 3), (4, 5, 6)]) == class_color(2)


def test_other_scripts_and_long_names():
    image = np.full((480, 640, 3), 90, dtype=np.uint8)
    boxes = np.array([[100, 100, 300, 300], [0, 400, 30, 430.0]])
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = {'classes': ('собака äöü', 'n' * 500)}
    picture = visualizer.draw_instances(image, InstanceData(bboxes=boxes, labels=np.array([0, 1])))
    assert (picture == class_color(1)).all(-1).sum() > 2000  # shortened rather than left out


def test_elongated_images_are_not_enlarged():
    strip = np.zeros((20, 1000, 3), dtype=np.uint8)
    none = InstanceData(bboxes=np.zeros((0, 4)), labels=np.zeros(0, dtype=int))
    assert DetLocalVisualizer().draw_instances(strip, none).shape == (32, 1600, 3)
    assert DetLocalVisualizer().draw_instances(strip, none, longest_px=500).shape == (10, 500, 3)
