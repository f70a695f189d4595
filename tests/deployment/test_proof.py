"""How the proof tells rounding, ties and errors apart."""

import numpy as np
import pytest
import torch
from torch import nn

from ddetr.deployment.proof import Bounds, Found, compare, shaken

BOUNDS = Bounds(score=1e-4, box_px=0.1)


def found(scores, labels=None, boxes=None):
    scores = np.array(scores, dtype=np.float32)
    labels = np.zeros(len(scores), dtype=np.int64) if labels is None else np.array(labels)
    boxes = np.arange(len(scores) * 4, dtype=np.float32).reshape(-1, 4) if boxes is None else boxes
    return Found(boxes, scores, labels)


def test_equal_results_have_no_difference():
    difference = compare(found([0.9, 0.5]), found([0.9, 0.5]), BOUNDS)
    assert difference == (0.0, 0.0, 2, '')


def test_near_equal_scores_may_swap_ranks():
    expected = found([0.5, 0.4999999, 0.2])
    swapped = Found(expected.boxes[[1, 0, 2]], expected.scores, expected.labels)
    difference = compare(expected, swapped, BOUNDS)
    assert not difference.exceeds(BOUNDS)
    assert difference.score == pytest.approx(1e-7, rel=0.5)
    assert difference.box_px == 0


def test_differences_are_the_largest_of_all_pairs():
    expected = found([0.9, 0.5])
    other = Found(
        expected.boxes + np.array([[0.0] * 4, [0, 0, 0.3, 0]]), np.array([0.9, 0.48]), expected.labels
    )
    difference = compare(expected, other, BOUNDS)
    assert difference.score == pytest.approx(0.02, abs=1e-6)
    assert difference.box_px == pytest.approx(0.3, abs=1e-6)
    assert difference.exceeds(BOUNDS)


@pytest.mark.parametrize('side', [0, 1])
def test_unmatched_detection_is_an_error(side):
    pair = [found([0.9, 0.5]), found([0.9])]
    difference = compare(pair[side], pair[1 - side], BOUNDS)
    assert 'score 0.5000' in difference.unmatched
    assert difference.exceeds(BOUNDS)


def test_a_changed_class_is_an_error():
    assert compare(found([0.9, 0.1], [1, 0]), found([0.9, 0.1], [2, 0]), BOUNDS).exceeds(BOUNDS)


def test_lists_may_differ_at_the_score_threshold_and_the_last_rank():
    assert not compare(found([0.9, 0.05001]), found([0.9, 0.04999]), BOUNDS).exceeds(BOUNDS)
    expected = found([0.9, 0.3], [0, 1])
    assert not compare(expected, found([0.9, 0.3], [0, 2]), BOUNDS).exceeds(BOUNDS)  # tied for the last place


def test_non_finite_scores_are_an_error():
    assert compare(found([0.9]), found([np.nan]), BOUNDS).exceeds(BOUNDS)


def test_rounding_noise_is_added_to_every_layer_and_removed_again():
    layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    inputs = torch.randn(4, 8)
    plain = layers(inputs)
    with shaken(layers, seed=0):
        noisy = layers(inputs)
    assert 0 < (noisy - plain).abs().max() < 1e-4
    assert torch.equal(layers(inputs), plain)


def test_rounding_noise_holds_for_a_layer_without_rows():
    layer = nn.Linear(8, 8)
    with shaken(layer, seed=0):
        assert layer(torch.empty(0, 8)).shape == (0, 8)
