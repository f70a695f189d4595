"""Augmentations against independent truth: coloured rectangles that must lie where their boxes say."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddetr.datasets.transforms import (
    Expand,
    MinIoURandomCrop,
    MixUp,
    Mosaic,
    PhotoMetricDistortion,
    RandomAffine,
    RandomRotate90,
    YOLOXHSVRandomAug,
)
from ddetr.registry import TRANSFORMS

# of the objects with label 0, 1, ...: which channels are bright, on black
CODES = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]], dtype=bool)
STEADY = {'max_rotate_degree': 0.0, 'max_shear_degree': 0.0}


def _sample(seed, boxes=2, width=80, height=60, dtype=np.uint8):
    """An image with filled rectangles in the colours of labels 0, 1, ..., which do not overlap, and their boxes."""
    rng = np.random.default_rng(seed)
    img = np.zeros((height, width, 3), dtype=dtype)
    found = []
    for i in range(boxes):
        column = width // max(boxes, 1)
        w, h = rng.integers(12, column - 4), rng.integers(12, height - 4)
        x, y = i * column + rng.integers(1, column - w), rng.integers(1, height - h)
        img[y : y + h, x : x + w] = 250 * CODES[i]
        found.append([x, y, x + w, y + h])
    return {
        'img': img,
        'img_shape': (height, width),
        'img_id': seed,
        'instances': [{}] * boxes,
        'scale_factor': (1.0, 1.0),
        'gt_bboxes': np.array(found, dtype=np.float32).reshape(-1, 4),
        'gt_bboxes_labels': np.arange(boxes, dtype=np.int64),
        'gt_ignore_flags': np.arange(boxes) % 2 == 1,
    }


def _check_form(results, dtype=np.uint8):
    height, width = results['img'].shape[:2]
    boxes = results['gt_bboxes']
    assert results['img'].dtype == dtype
    assert results['img_shape'][:2] == (height, width)
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(results['gt_bboxes_labels']), 4)
    assert results['gt_bboxes_labels'].dtype == np.int64
    assert results['gt_ignore_flags'].dtype == bool
    assert len(results['gt_ignore_flags']) == len(boxes)
    np.testing.assert_array_equal(results['gt_ignore_flags'], results['gt_bboxes_labels'] % 2 == 1)
    assert (boxes >= 0).all()
    assert (boxes <= [width, height, width, height]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert 'instances' not in results  # those of the image as it was read


def _of_label(img, label):
    return ((img > 125) == CODES[label]).all(axis=2)


def _rectangle_of(img, label):
    """x1 y1 x2 y2 of the pixels that have a label's colour, found in the image itself."""
    ys, xs = np.nonzero(_of_label(img, label))
    return None if not len(xs) else np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def _check_rectangles(results, slack, least=4):
    """Each box surrounds the pixels of its object's colour; objects cut to slivers may have vanished."""
    found = dict(zip(results['gt_bboxes_labels'].tolist(), results['gt_bboxes'], strict=True))
    for label in range(2):
        seen = _rectangle_of(results['img'], label)
        if seen is not None and (seen[2:] - seen[:2] >= least).all():
            np.testing.assert_allclose(found[label], seen, atol=slack)


GEOMETRIC = {
    'affine': (lambda: RandomAffine(**STEADY, scaling_ratio_range=(0.6, 1.6), border_val=(0, 0, 0)), 1.5),
    'affine, cut': (lambda: RandomAffine(**STEADY, border=(-10, -5), border_val=(0, 0, 0)), 1.5),
    'quarter turn': (lambda: RandomRotate90(prob=1.0), 0),
    'expand': (lambda: Expand(prob=1.0, ratio_range=(1, 3)), 0),
    'crop': (lambda: MinIoURandomCrop(min_ious=(0.1,)), 0),
}


@pytest.mark.parametrize('name', GEOMETRIC)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_boxes_move_with_the_pixels(name, seed):
    build, slack = GEOMETRIC[name]
    np.random.seed(seed % 2**32)
    sample = _sample(seed)
    before = sample['img'].copy()
    results = build()(sample)
    if name != 'crop':  # which may leave the image whole
        _check_form(results)
    elif results['img'].shape != before.shape:
        _check_form(results)
        for label in {0, 1} - set(results['gt_bboxes_labels'].tolist()):
            results['img'][_of_label(results['img'], label)] = 0
    _check_rectangles(results, slack)


def test_affine_without_motion_is_the_identity():
    still = RandomAffine(0.0, 0.0, (1.0, 1.0), 0.0)
    results = still(_sample(3))
    np.testing.assert_array_equal(results['img'], _sample(3)['img'])
    np.testing.assert_allclose(results['gt_bboxes'], _sample(3)['gt_bboxes'], atol=1e-4)


def test_affine_by_half_a_turn_is_a_diagonal_flip():
    turn = RandomAffine(0.0, 0.0, (1.0, 1.0), 0.0)
    matrix = np.array([[-1, 0, 80], [0, -1, 60], [0, 0, 1]], dtype=float)
    turn._matrix = lambda *sizes: matrix
    results = turn(_sample(5))
    np.testing.assert_array_equal(results['img'], _sample(5)['img'][::-1, ::-1])
    expected = np.array([80, 60, 80, 60]) - _sample(5)['gt_bboxes'][:, [2, 3, 0, 1]]
    np.testing.assert_allclose(results['gt_bboxes'], expected, atol=1e-4)


def test_affine_draws_turns_and_shears_within_their_limits():
    np.random.seed(0)
    matrices = [RandomAffine(30.0, 0.0, (0.5, 2.0), 0.0)._matrix(60, 80, 60, 80) for _ in range(200)]
    scales = [np.sqrt(np.linalg.det(m[:2, :2])) for m in matrices]
    angles = [np.degrees(np.arctan2(m[1, 0], m[0, 0])) for m in matrices]
    assert 0.5 <= min(scales) < 0.6
    assert 1.9 < max(scales) <= 2.0
    assert -30 <= min(angles) < -25
    assert 25 < max(angles) <= 30
    for matrix in matrices:  # the centre stays where it is
        np.testing.assert_allclose(matrix @ [40, 30, 1], [40, 30, 1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), prob=st.sampled_from([0.0, 1.0]))
def test_mosaic_lays_four_images_around_its_centre(seed, prob):
    np.random.seed(seed % 2**32)
    parts = [_sample(seed + i, boxes=1, width=80 - 20 * (i == 2)) for i in range(4)]
    for i, part in enumerate(parts):  # one colour an image
        part['img'][_of_label(part['img'], 0)] = 250 * CODES[i]
        part['gt_bboxes_labels'][:] = i
        part['gt_ignore_flags'][:] = i % 2 == 1
    results = Mosaic(img_scale=(80, 60), prob=prob, pad_val=0)({**parts[0], 'mix_results': parts[1:]})
    if not prob:
        assert results['img'] is parts[0]['img']
        assert len(results['gt_bboxes']) == 1
        return
    _check_form(results)
    assert results['img'].shape == (120, 160, 3)
    for label, box in zip(results['gt_bboxes_labels'], results['gt_bboxes'], strict=True):
        np.testing.assert_allclose(box, _rectangle_of(results['img'], label), atol=1.5)
    seen = {i for i in range(4) if _of_label(results['img'], i).any()}
    assert seen <= set(results['gt_bboxes_labels'].tolist())


def test_mosaic_and_mixup_take_images_without_boxes():
    empty = [_sample(i, boxes=0) for i in range(4)]
    results = Mosaic(img_scale=(80, 60))({**empty[0], 'mix_results': empty[1:]})
    _check_form(results)
    assert not len(results['gt_bboxes'])
    results = MixUp(img_scale=(80, 60))({**_sample(1), 'mix_results': [empty[0]]})
    np.testing.assert_array_equal(results['img'], _sample(1)['img'])  # nothing to mix in
    results = MixUp(img_scale=(80, 60))({**empty[0], 'mix_results': [_sample(1)]})
    assert results['gt_bboxes'].shape[1] == 4


@pytest.mark.parametrize('flip', [0.0, 1.0])
def test_mixup_averages_two_images_and_keeps_both_boxes(flip):
    other = _sample(8)
    results = MixUp(img_scale=(80, 60), ratio_range=(1.0, 1.0), flip_ratio=flip)(
        {**_sample(7), 'mix_results': [other]}
    )
    second, boxes = _sample(8)['img'], _sample(8)['gt_bboxes']
    if flip:
        second, boxes = second[:, ::-1], np.array([80, 60, 80, 60]) - boxes[:, [2, 3, 0, 1]]
        boxes[:, [1, 3]] = _sample(8)['gt_bboxes'][:, [1, 3]]
    expected = (_sample(7)['img'].astype(int) + second) // 2
    np.testing.assert_array_equal(results['img'], expected)
    np.testing.assert_allclose(results['gt_bboxes'], np.concatenate([_sample(7)['gt_bboxes'], boxes]))
    assert results['gt_bboxes_labels'].tolist() == [0, 1, 0, 1]
    assert results['gt_ignore_flags'].tolist() == [False, True, False, True]


@pytest.mark.parametrize('ratio', [0.5, 2.0])
def test_mixup_clips_the_boxes_of_larger_images_and_pads_smaller_ones(ratio):
    np.random.seed(1)
    results = MixUp((80, 60), (ratio, ratio), flip_ratio=0.0, pad_val=0)(
        {**_sample(2, boxes=0), 'mix_results': [_sample(9)]}
    )
    results['img'] = results['img'].astype(int) * 2  # the other image alone
    assert results['img'].shape == (60, 80, 3)
    results['img'] = np.clip(results['img'], 0, 255).astype(np.uint8)
    _check_rectangles(results, slack=1.5, least=8)


def test_minimum_iou_of_a_crop_holds_for_every_kept_box():
    crop = MinIoURandomCrop(min_ious=(0.3,))
    crop.modes = (0.3, 1.0)  # or the whole image
    np.random.seed(0)
    crops = 0
    for seed in range(40):
        sample = _sample(seed, boxes=1)
        original = sample['gt_bboxes'][0]
        area = float((original[2:] - original[:2]).prod())
        height, width = crop(sample)['img'].shape[:2]
        if (height, width) == (60, 80):
            continue
        crops += 1
        inside = float((sample['gt_bboxes'][0][2:] - sample['gt_bboxes'][0][:2]).prod())
        assert inside / (height * width + area - inside) >= 0.3
    assert crops > 5


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('kind', [PhotoMetricDistortion, YOLOXHSVRandomAug])
def test_colours_change_and_nothing_else(kind, dtype):
    img = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(dtype)
    changed = 0
    for seed in range(20):
        np.random.seed(seed)
        sample = {**_sample(0), 'img': img.copy()}
        results = kind()(sample)
        assert results['img'].dtype == dtype
        assert results['img'].shape == img.shape
        assert results['img'].min() >= 0
        assert results['img'].max() <= 255
        np.testing.assert_array_equal(results['gt_bboxes'], _sample(0)['gt_bboxes'])
        changed += bool((results['img'] != img).any())
    assert changed > 12


def test_photometric_distortion_follows_its_formulas(monkeypatch):
    img = np.random.default_rng(0).integers(30, 180, (5, 7, 3)).astype(np.float32)
    only = {
        'brightness': ({'brightness_delta': (20, 20)}, lambda x: x + 20),
        'contrast': ({'contrast_range': (0.5, 0.5)}, lambda x: x * 0.5),
    }
    for keys, expected in only.values():
        np.random.seed(0)
        low_high = keys.pop('brightness_delta', None)
        step = PhotoMetricDistortion(
            **{'brightness_delta': 0, 'contrast_range': (1, 1), 'saturation_range': (1, 1), 'hue_delta': 0}
            | keys,
            swap_channels=False,
        )
        if low_high:
            step.brightness_delta = -20  # uniform(20, -20): the sign shows in one direction
            monkeypatch.setattr(np.random, 'uniform', _constant(0.0, low_high[0]))
        else:
            monkeypatch.setattr(np.random, 'uniform', _constant(0.0, 0.5))
        results = step({'img': img.copy()})
        monkeypatch.undo()
        np.testing.assert_allclose(results['img'], np.clip(expected(img), 0, 255), atol=1e-2)


def _constant(chosen, drawn):
    """`uniform` that chooses every step and draws this where the range allows it."""

    def uniform(low=0.0, high=1.0, size=None):
        if size is not None:
            return np.full(size, chosen)
        if (low, high) == (0.0, 1.0):
            return chosen
        low, high = min(low, high), max(low, high)
        return float(np.clip(drawn, low, high))

    return uniform


def test_hsv_shift_of_a_pure_colour():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 2] = 200
    step = YOLOXHSVRandomAug(hue_delta=60, saturation_delta=0, value_delta=0)
    found = set()
    for seed in range(20):
        np.random.seed(seed)
        found.add(tuple(step({'img': red.copy()})['img'][0, 0].tolist()))
    assert (0, 0, 200) in found  # half of the time nothing changes
    hues = {int(cv2.cvtColor(np.uint8([[c]]), cv2.COLOR_BGR2HSV)[0, 0, 0]) for c in found}
    assert len(hues) > 5
    assert {max(c) for c in found} == {200}


@pytest.mark.parametrize(
    ('config', 'fault'),
    [
        ({'type': 'Mosaic', 'prob': 1.5}, 'not a probability'),
        ({'type': 'Mosaic', 'center_ratio_range': (0.5, 2.5)}, 'center_ratio_range'),
        ({'type': 'MixUp', 'flip_ratio': -1}, 'not a probability'),
        ({'type': 'RandomAffine', 'scaling_ratio_range': (0.0, 1.0)}, 'positive'),
        ({'type': 'RandomRotate90', 'prob': 2}, 'not a probability'),
        ({'type': 'Expand', 'ratio_range': (0.5, 2)}, 'at least 1'),
    ],
)
def test_invalid_options_raise(config, fault):
    with pytest.raises(ValueError, match=fault):
        TRANSFORMS.build(config)


def test_affine_that_leaves_no_pixel():
    with pytest.raises(ValueError, match='leaves nothing of 80 x 60'):
        RandomAffine(border=(-40, 0))(_sample(0))
