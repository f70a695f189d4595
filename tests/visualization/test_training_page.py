"""The page of a training run: contents, display in a browser, and server."""

import json
import re
import threading
import urllib.error
import urllib.request
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

from ddetr.apis import TrainOptions, train_detector
from ddetr.cli import main
from ddetr.utils import InputError
from ddetr.visualization.curves import read_curves, read_scalars
from ddetr.visualization.page_server import page_server
from ddetr.visualization.training_page import Progress, training_page, write_progress, write_training_page

NASTY = '<img src=x onerror=alert(1)>'


class Texts(HTMLParser):
    """All tags, and all texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.fixture
def work_dir(tmp_path):
    """Logs of a long training with HTML in the names of its classes, images and config."""
    log = tmp_path / '20250101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    rows = []
    for step in range(50, 60_000, 50):
        loss = 20 * np.exp(-step / 9000) + 2
        rows.append({'loss': loss, 'loss_cls': loss / 2, 'd0.loss_cls': loss / 3, 'd0.dn_loss_cls': 1.0, 'lr': 1e-4,
                     'matched_iou': 1 - 5 / loss, 'time': 0.5, 'iter': step, 'step': step})  # fmt: skip
        if step % 6000 == 0:
            rows.append({'coco/bbox_mAP': step / 1e5, f'coco/{NASTY}_precision': 0.3, 'time': 9.0,
                         'step': step // 6000})  # fmt: skip
    log.write_text('\n'.join(map(json.dumps, rows)))
    for epoch in (8, 9, 10):
        folder = tmp_path / 'val_pictures' / f'epoch_{epoch}'
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / '0_a<b>&.jpg'), np.full((60, 160, 3), 20 * epoch, np.uint8))
    write_progress(
        Progress(f'{NASTY}.py', 'running', 59_950, 60_000, 10, 10, 6000, 4, 8, 61.0, 1.7e9), tmp_path
    )
    return tmp_path


def test_training_writes_its_page_and_pictures(tiny_run):
    page = Texts((tiny_run.work_dir / 'curves.html').read_text())
    assert 'ended' in page.texts
    assert 'iteration 8 of 8' in page.texts
    assert 'epoch 2 of 2' in page.texts
    for heading in ('Progress', 'Loss terms', 'Optimisation and speed', 'Validation images'):
        assert heading in page.texts
    drawn = sorted(str(p.relative_to(tiny_run.work_dir)) for p in tiny_run.work_dir.glob('val_pictures/*/*'))
    assert drawn == [f'val_pictures/epoch_{e}/{n}_00000000000{1 + 2 * n}.jpg' for e in (1, 2) for n in (0, 1)]
    assert page.tags.count('img') == 4
    picture = cv2.imread(str(tiny_run.work_dir / drawn[0]))
    assert max(picture.shape[0], picture.shape[1] // 2) == 480  # ground truth and detections
    curves = read_curves(tiny_run.work_dir)
    for name in ('matched_iou', 'queries_used'):
        values = [value for _, value in curves[name].points]
        assert len(values) == 8
        assert all(0 < value < 1 for value in values)
        assert curves[name].unit == 'iteration'


def test_page_and_pictures_do_not_change_the_training(tiny_run, tmp_path):
    options = {'default_hooks.training_page': None, 'default_hooks.visualization.val_images': 0}
    train_detector(tiny_run.config, TrainOptions(str(tmp_path), cfg_options=options))
    assert not (tmp_path / 'curves.html').exists()
    assert not (tmp_path / 'val_pictures').exists()
    expected = torch.load(tiny_run.checkpoint, weights_only=False)['state_dict']
    weights = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['state_dict']
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    with_page, without = read_scalars(tiny_run.work_dir), read_scalars(tmp_path)
    for name in ('loss', 'matched_iou', 'coco/bbox_mAP', 'lr'):
        assert with_page[name] == without[name]


def test_axes_state_their_units(work_dir):
    text = training_page(work_dir)
    texts = Texts(text).texts
    assert 'epoch' in texts  # of the metrics
    assert 'iteration (one optimizer step every 4 iterations)' in texts
    assert 'loss_cls (log scale)' not in texts
    assert 'loss 2.026 · ' not in text
    assert 'loss 2.026' in texts  # the last value
    (work_dir / 'progress.json').unlink()
    assert {'iteration', 'epoch'} <= set(Texts(training_page(work_dir)).texts)  # logs of an earlier version


def test_curves_lie_where_the_values_are(work_dir):
    """The AP polyline, decoded with the axis ticks, equals the logged values."""
    text = training_page(work_dir)
    chart = re.search(r'<h3>Average precision</h3>.*?</svg>', text, re.S)[0]
    (points,) = re.findall(r'polyline points="([^"]*)"', chart)
    xy = np.array([point.split(',') for point in points.split()], dtype=float)
    ticks = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="tick (mid|end)">([^<]*)</text>', chart)
    along = {kind: np.array([(float(x if kind == 'mid' else y) - (kind == 'end') * 4, float(value))
             for x, y, k, value in ticks if k == kind]) for kind in ('mid', 'end')}  # fmt: skip
    steps = np.polyval(np.polyfit(*along['mid'].T, 1), xy[:, 0])
    values = np.polyval(np.polyfit(*along['end'].T, 1), xy[:, 1])
    np.testing.assert_allclose(steps, range(1, 10), atol=0.02)
    np.testing.assert_allclose(values, [0.06 * n for n in range(1, 10)], atol=0.002)


def test_run_from_scratch_replaces_the_earlier_one(work_dir):
    log = work_dir / '20250102_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({'loss': 7.0, 'iter': 50, 'step': 50}) + '\n{"loss": 6.')  # half a line
    assert read_scalars(work_dir) == {'loss': [(50, 7.0)]}
    log.write_text('{"loss": 6.\n' + json.dumps({'loss': 7.0, 'iter': 50, 'step': 50}))
    with pytest.raises(InputError, match='line 1: invalid JSON'):
        read_scalars(work_dir)


def test_page_in_browser(work_dir, static_page_views):
    """The page is static and small, and shows names as text."""
    page = write_training_page(work_dir)
    assert page.stat().st_size < 1_000_000
    for tab in static_page_views(page):
        body = tab.inner_text('body')
        assert body.count(NASTY) >= 2  # title and class
        assert 'a<b>&' in body
        assert min(tab.eval_on_selector_all('figure img', 'all => all.map(i => i.naturalWidth)')) == 160
        assert tab.locator('meta[http-equiv=refresh]').get_attribute('content') == '10'


def test_server_answers_only_local_requests(work_dir, tmp_path_factory):
    empty = tmp_path_factory.mktemp('empty')
    for folder, sentence in ((work_dir, 'Average precision'), (empty, 'give the work directory')):
        server = page_server(folder, 0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = f'http://127.0.0.1:{server.server_port}'
            with urllib.request.urlopen(address, timeout=20) as answer:
                assert sentence in answer.read().decode()
            for request in (
                urllib.request.Request(f'{address}/progress.json'),
                urllib.request.Request(address, headers={'Host': 'example.org'}),
            ):
                with pytest.raises(urllib.error.HTTPError, match='404'):
                    urllib.request.urlopen(request, timeout=20)
            with pytest.raises(InputError, match=f'port {server.server_port} is not available'):
                page_server(folder, server.server_port)
        finally:
            server.shutdown()
            server.server_close()
    with pytest.raises(InputError, match='is not a folder'):
        page_server(work_dir / 'absent', 0)


def test_the_command_writes_the_page_of_an_earlier_training(work_dir, capsys):
    (work_dir / 'progress.json').unlink()
    main(['watch', str(work_dir), '--once'])
    assert capsys.readouterr().out.strip() == str(work_dir / 'curves.html')
    assert 'http-equiv="refresh"' not in (work_dir / 'curves.html').read_text()
    (work_dir / 'progress.json').write_text('{}')
    with pytest.raises(SystemExit, match='2'):
        main(['watch', str(work_dir), '--once'])
    assert 'progress.json was not written by this version of ddetr' in capsys.readouterr().err
