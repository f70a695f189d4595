"""The command that draws sampling points, on a trained model."""

import runpy
import sys

import cv2
import numpy as np
import pytest

from ddetr.visualization.sampling_points import Panel, SampledPoints, draw_panels, panels_of
from tests.conftest import ROOT


@pytest.fixture
def draw(tiny_run, monkeypatch, capsys):
    image = next((tiny_run.data_root / 'val2017').iterdir())

    def run(*arguments):
        command = ['sampling_points.py', image, tiny_run.config, tiny_run.checkpoint, *arguments]
        monkeypatch.setattr(sys, 'argv', [str(part) for part in command])
        runpy.run_path(str(ROOT / 'tools/analysis/sampling_points.py'), run_name='__main__')
        return capsys.readouterr().out.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize(
    'options',
    [
        ['--detection', '0', '1'],
        ['--split', 'heads', '--layer', '1', '--zoom'],
        ['--token', '20', '20', '--level', '1', '--split', 'levels'],
    ],
    ids=['detections', 'heads', 'token'],
)
def test_a_picture_of_each_kind(draw, tmp_path, options):
    out = tmp_path / 'new' / 'points.png'
    assert draw('--out', out, *options) == str(out)
    picture = cv2.imread(str(out))
    assert min(picture.shape[:2]) > 200
    colourful = np.ptp(picture.astype(int), axis=-1) > 60
    assert colourful.mean() > 0.002  # points of the colour map, the reference's mark


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (['--detection', '9999'], 'there is no detection 9999: this image has'),
        (['--layer', '3'], '--layer 3 must be between 1 and 2'),
        (['--token', '5000', '1'], 'pixel (5000, 1) is outside the image'),
    ],
)
def test_invalid_options_give_one_clear_error(draw, capsys, options, sentence):
    with pytest.raises(SystemExit, match='2'):
        draw(*options)
    assert sentence in capsys.readouterr().err


def test_panels_show_all_points_once_however_they_are_split():
    rng = np.random.default_rng(0)
    xy, weights = rng.random((3, 5, 2)), rng.random((3, 5))
    points = [
        SampledPoints(f'decoder.layers.{i}.cross_attn', xy, weights, np.array([0, 0, 1, 2, 2]), None)
        for i in (0, 1)
    ]
    layers, heads, levels = (panels_of(points, split, None) for split in ('layers', 'heads', 'levels'))
    assert [p.title for p in layers] == ['decoder layer 1', 'decoder layer 2']
    assert [p.title for p in heads] == ['head 0', 'head 1', 'head 2']
    np.testing.assert_array_equal(heads[1].xy_px, xy[1])
    assert [len(p.weights) for p in levels] == [6, 3, 6]
    np.testing.assert_array_equal(levels[1].weights, weights[:, 2])
    for panels in ([layers[1]], heads, levels):
        assert sorted(w for p in panels for w in p.weights) == sorted(weights.ravel())
        assert all(
            (p.levels == 2).sum() + (p.levels == 1).sum() + (p.levels == 0).sum() == len(p.levels)
            for p in panels
        )


def test_figure_shows_attention_weight_outside_the_image(tmp_path):
    panel = Panel(
        'layer', np.array([[5.0, 5.0], [-3.0, 5.0]]), np.array([0.75, 0.25]), np.array([0, 1]), None
    )
    out = draw_panels(np.zeros((10, 10, 3), np.uint8), [[panel]], tmp_path / 'figure.svg', ['title'])
    assert '<!-- layer · 25% outside -->' in out.read_text()  # matplotlib notes the text of its outlines
