import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddetr.datasets import CocoDataset, shapes
from ddetr.datasets.shapes import SHAPE_CLASSES, ShapesRecipe, draw_image, make_shapes
from ddetr.utils.errors import InputError

SMALL = ShapesRecipe(num_train=12, num_val=4, size=96)


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def _pure_colors(monkeypatch):
    """Black background and, in the order of drawing, shapes of pure blue, green, red and their mixtures."""
    codes = [np.array([code >> bit & 1 for bit in range(3)], dtype=np.float32) for code in range(1, 7)]
    drawn = iter([])

    def start(rng, height, width):
        nonlocal drawn
        drawn = iter(codes)
        return np.zeros((height, width, 3), dtype=np.float32)

    def fill(rng, shape, height, width):
        return np.full((height, width, 3), 255.0, dtype=np.float32) * next(drawn)

    monkeypatch.setattr(shapes, '_background', start)
    monkeypatch.setattr(shapes, '_fill', fill)
    return codes


def _found_again(image, code):
    """Where a colour is seen: not counting lines thinner than two pixels, since at the edge between two shapes
    their mixture looks like a third colour."""
    pixels = (image > 90) == code.astype(bool)  # shadows darken by a third at most, noise is weak
    square = np.ones((2, 2), np.uint8)
    eroded = cv2.erode(pixels.all(axis=2).astype(np.uint8), square)
    return cv2.dilate(eroded, square, anchor=(0, 0))  # (H, W)


def test_boxes_and_areas_are_those_of_the_visible_pixels(monkeypatch):
    codes = _pure_colors(monkeypatch)
    errors, round_errors, areas, parts_seen = [], [], [], []
    for number in range(80):
        image, annotations = draw_image(np.random.default_rng(number), ShapesRecipe())
        for code, annotation in zip(codes, annotations, strict=False):
            pixels = _found_again(image, code)
            rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            x, y, w, h = annotation['bbox']
            error = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) - [x, y, x + w, y + h]
            errors.append(error)
            name = SHAPE_CLASSES[annotation['category_id'] - 1]
            if name in ('circle', 'ring'):  # no corner that could be thinner than two pixels
                round_errors.append(error)
            areas.append(pixels.sum() / annotation['area'])
            if name == 'circle':
                parts_seen.append(annotation['area'] / (np.pi / 4 * w * h))

    assert len(errors) > 200
    assert np.abs(np.mean(errors, axis=0).reshape(2, 2).sum(axis=0)).max() < 0.3  # no shift
    assert np.percentile(np.abs(errors), 90) <= 1.5
    assert np.percentile(np.abs(round_errors), 90) <= 0.75
    assert 0.98 < np.median(areas) < 1.03
    assert min(parts_seen) < 0.9  # some are hidden in part


def test_recipe_determines_every_pixel(tmp_path):
    for name in ('first', 'second'):
        assert make_shapes(tmp_path / name, SMALL)
    assert make_shapes(tmp_path / 'other', ShapesRecipe(num_train=12, num_val=4, size=96, seed=1))
    assert make_shapes(tmp_path / 'longer', ShapesRecipe(num_train=14, num_val=4, size=96))

    first, second, other, longer = (
        _files(tmp_path / name) for name in ('first', 'second', 'other', 'longer')
    )
    assert len(first) == 12 + 4 + 2
    assert first == second
    pictures = [name for name in first if name.endswith('.jpg')]
    assert all(first[name] != other[name] for name in pictures)
    assert all(first[name] == longer[name] for name in pictures)
    assert first['train2017/000000000001.jpg'] != first['val2017/000000000001.jpg']


def test_the_dataset_reads_it_and_it_is_varied(tmp_path):
    recipe = ShapesRecipe(num_train=150, num_val=2)
    make_shapes(tmp_path / 'shapes', recipe)

    dataset = CocoDataset(
        data_root=str(tmp_path / 'shapes'),
        ann_file='annotations/instances_train2017.json',
        data_prefix={'img': 'train2017/'},
        pipeline=[{'type': 'LoadImageFromFile'}],
    )
    infos = [dataset.get_data_info(i) for i in range(150)]
    raw = json.loads((tmp_path / 'shapes/annotations/instances_train2017.json').read_text())

    assert dataset.metainfo['classes'] == SHAPE_CLASSES
    counts = [len(info['instances']) for info in infos]
    assert sum(counts) == len(raw['annotations'])  # no box is degenerate or outside
    assert set(counts) == set(range(7))  # images without any included
    assert all(max(info['width'], info['height']) == 192 for info in infos)
    assert min(min(info['width'], info['height']) for info in infos) < 150
    areas = np.array([annotation['area'] for annotation in raw['annotations']])
    shares = [(areas < 32**2).mean(), ((areas >= 32**2) & (areas < 96**2)).mean(), (areas >= 96**2).mean()]
    assert shares[0] > 0.3
    assert shares[1] > 0.3
    assert shares[2] > 0.01
    labels = np.array([i['bbox_label'] for info in infos for i in info['instances']])
    assert np.bincount(labels, minlength=6).min() > 40
    assert dataset[0]['img'].shape == (infos[0]['height'], infos[0]['width'], 3)  # as annotated, or it raises


def test_dataset_is_kept_never_overwritten_and_written_atomically(tmp_path, monkeypatch):
    folder = tmp_path / 'new' / 'shapes'

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, 'write_json', interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_shapes(folder, SMALL)
    assert not folder.exists()
    assert make_shapes(folder, SMALL)
    assert [path.name for path in folder.parent.iterdir()] == ['shapes']
    assert not make_shapes(folder, SMALL)
    with pytest.raises(InputError, match=r'shapes exists and is not this dataset'):
        make_shapes(folder, ShapesRecipe(num_train=12, num_val=4, size=128))
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'precious.txt').write_text('mine')
    with pytest.raises(InputError, match='mine exists'):
        make_shapes(tmp_path / 'mine', SMALL)
    assert (tmp_path / 'mine' / 'precious.txt').read_text() == 'mine'


@pytest.mark.parametrize('change', [{'num_train': 0}, {'size': 20}, {'max_objects': 0}, {'seed': -1}])
def test_invalid_recipes_raise(change):
    (name,) = change
    with pytest.raises(InputError, match=f'{name} must be at least'):
        ShapesRecipe(**change)


def test_command_line(tmp_path, repo_root):
    def run(*arguments):
        command = [sys.executable, repo_root / 'tools/make_shapes.py', tmp_path / 'shapes', *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    drawn = run('--num-train', '3', '--num-val', '2', '--size', '64')
    assert drawn.returncode == 0, drawn.stderr
    assert 'now holds 3 training and 2 held-out images of circle, square' in drawn.stdout
    assert len(list((tmp_path / 'shapes' / 'train2017').iterdir())) == 3
    refused = run('--num-train', '4')
    assert refused.returncode == 2
    assert refused.stderr.startswith('error: ')
    assert refused.stderr.count('\n') == 1
