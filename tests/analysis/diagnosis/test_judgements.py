"""Decision rules of the checks, on synthetic data with known ground truth."""

import numpy as np
import pytest

from ddetr.analysis.diagnosis.boxes import judge
from ddetr.analysis.diagnosis.contents import separability
from ddetr.analysis.diagnosis.labels import _exchanged
from ddetr.analysis.diagnosis.normalisation import IMAGENET, of_checkpoint
from ddetr.analysis.diagnosis.subject import Written
from ddetr.analysis.diagnosis.training import Run, _is_too_high


def written(convention, count=200):
    """Random boxes in images of 640 x 480, written in one convention and read as x y w h."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        w, h = rng.uniform(20, 300, 2)
        x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
        a, b, c, d = {
            'xywh': (x, y, w, h),
            'xyxy': (x, y, x + w, y + h),
            'centres': (x + w / 2, y + h / 2, w, h),
            'fractions': (x / 640, y / 480, w / 640, h / 480),
            'twice the size': (2 * x, 2 * y, 2 * w, 2 * h),
        }[convention]
        found.append(Written((a, b, a + c, b + d), (640, 480)))
    return found


@pytest.mark.parametrize(
    ('convention', 'says'),
    [
        ('xyxy', 'xyxy written as xywh'),
        ('centres', 'cxcywh as xywh'),
        ('fractions', 'fractions of the image'),
        ('twice the size', 'do not fit their images'),
    ],
)
def test_box_conventions_are_distinguished(convention, says):
    finding, _ = judge(written(convention), 'in the annotations')
    assert says in finding.title


def test_correct_boxes_with_a_few_wrong_ones_are_not_a_cause():
    assert judge(written('xywh'), '')[0] is None
    assert judge([*written('xywh', 195), *written('xyxy', 5)], '')[0] is None
    large = [Written((1, 1, 630 + i, 470 + i), (640, 480)) for i in range(9)]  # one object fills each image
    assert judge(large, '')[0] is None


def test_second_corner_read_as_size_is_distinguished_from_empty_boxes():
    boxes = [Written((x, y, w, h), (640, 480)) for x, y, w, h in ((400, 300, 50, 60), (300, 350, 90, 20))]
    finding, _ = judge(boxes, '')
    assert 'end before they start' in finding.title


def test_labels_that_features_explain_are_separable_and_shuffled_ones_are_chance():
    rng = np.random.default_rng(1)
    labels, images = rng.integers(0, 3, 400), np.arange(400) // 4
    features = rng.normal(size=(400, 20)) + np.eye(3, 20)[labels] * 1.5
    right = separability(features, labels, images)
    shuffled = separability(features, rng.permutation(labels), images)
    assert right.auc > 0.75
    assert not right.is_chance
    assert shuffled.is_chance
    assert separability(features[:12], labels[:12], images[:12]) is None  # too few to tell


def test_labels_that_only_the_image_explains_are_chance_within_images():
    """Labels shuffled within each image: image content still predicts which classes occur."""
    rng = np.random.default_rng(1)
    images = np.repeat(np.arange(80), 6)
    rare = rng.integers(1, 3, 80)[images]
    labels = np.where(rng.random(480) < 0.5, 0, rare)
    features = rng.normal(size=(480, 10)) + np.eye(3, 10)[rare] * 3
    assert not separability(features, labels, images).is_chance
    assert separability(features, labels, images, within_groups=True).is_chance


def test_swapped_classes_are_complete_cycles_and_not_noise():
    counts = np.array([100, 100, 100, 10])
    swapped = np.array(
        [[0.2, 0.9, 0.5, 0.4], [0.9, 0.2, 0.5, 0.5], [0.5, 0.5, 0.9, 0.5], [0.5, 0.5, 0.4, 0.8]]
    )
    assert sorted(_exchanged(swapped, counts)) == [(0, 1), (1, 0)]
    assert _exchanged(np.eye(4) * 0.4 + 0.5, counts) == []
    unsure = np.array([[0.55, 0.8], [0.75, 0.5]])
    assert _exchanged(unsure, np.array([8, 8])) == []
    assert len(_exchanged(unsure, np.array([500, 500]))) == 2


def test_learning_rates_are_judged_by_lower_ones_and_by_the_size_of_a_step():
    def run(last, update=0.01):
        return Run(1.0, 20.0, last, 30, update)

    assert not _is_too_high(run(5), [run(9), run(18)])
    assert _is_too_high(run(30), [run(9), run(6)])
    assert _is_too_high(run(float('inf')), [run(9), run(6)])
    assert _is_too_high(run(5, update=0.8), [run(5, update=0.08), run(8)])  # flattered by the first steps
    assert not _is_too_high(run(19.9), [run(19.9), run(20.0)])  # nothing learns: another cause


def test_normalisation_of_a_checkpoint_is_read_from_its_config(tiny_run, tmp_path):
    colours = of_checkpoint(str(tiny_run.checkpoint))
    assert colours.differs(IMAGENET) == ''
    assert colours.mean == (123.675, 116.28, 103.53)
    assert 'order' in colours._replace(order='BGR').differs(IMAGENET)
    assert 'scale' in colours._replace(std=(1.0, 1.0, 1.0)).differs(IMAGENET)
    assert 'mean' in colours._replace(mean=(0.0, 0.0, 0.0)).differs(IMAGENET)
