"""The web demo: a real server process, raw requests, and Chromium."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import numpy as np
import PIL.Image
import pytest
import torch

from ddetr.analysis.sampling import look_at
from ddetr.apis import DetInferencer, init_detector
from ddetr.apis.results import Selection
from ddetr.cli import main
from ddetr.registry import MODELS
from ddetr.utils import InputError
from ddetr.web.detection import Demo, PointsView
from ddetr.web.jobs import JOB_BYTES, JobQueue, QueueFull
from tests.conftest import ROOT
from tests.parity.hf import randomize

CONFIG = ROOT / 'tests/configs/tiny_shapes.py'
CLASSES = ['circle', '<b onclick=alert(1)>square</b>', 'triangle', 'star', 'ring', 'cross']
SERVER = {'host': '127.0.0.1', 'port': '0', 'max-upload-mb': '1', 'max-megapixels': '2', 'queue': '12'}
TIMEOUT_MS = 120_000  # of each step in the browser, on a busy machine
MARKUP = '<img src=x onerror=alert(1)>.png'  # as the name of an image


def picture(seed: int = 0, suffix: str = 'PNG') -> bytes:
    """An encoded image of 120 x 90 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).resize((120, 90), PIL.Image.Resampling.NEAREST).save(file, suffix)
    return file.getvalue()


def hundred_megapixels() -> bytes:
    """Small as a file: one colour, 1 bit a pixel."""
    file = io.BytesIO()
    PIL.Image.new('1', (10_000, 10_000)).save(file, 'PNG')
    return file.getvalue()


class Server:
    """The demo in a separate process, and requests with unnormalised paths."""

    def __init__(self, checkpoint: Path, examples: Path) -> None:
        options = [part for key, value in SERVER.items() for part in (f'--{key}', value)]
        self.process = subprocess.Popen(
            [sys.executable, 'demo/web_demo.py', CONFIG, checkpoint, '--examples', examples, *options],
            cwd=ROOT,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith('http://'):
                break
        assert self.lines, 'the server said nothing'
        assert self.lines[-1].startswith('http://127.0.0.1:'), self.lines
        self.url = self.lines[-1].split()[0]
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout), daemon=True).start()

    def ask(self, path: str, method: str = 'GET', body=None, **headers: str) -> tuple[int, dict, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        answer = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return answer

    def detect(self, data: bytes, name: str = 'a.png') -> dict:
        status, _, body = self.ask(f'/api/images?name={quote(name)}', 'POST', data)
        assert status == 202, body
        return self.wait(json.loads(body)['id'])

    def wait(self, job: str) -> dict:
        while True:
            answer = json.loads(self.ask(f'/api/images/{job}')[2])
            if answer['state'] in ('done', 'failed'):
                return answer
            threading.Event().wait(0.02)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory) -> Path:
    """A detector with random weights, whose scores are spread; its class names hold HTML."""
    model = MODELS.build(init_detector(CONFIG).cfg.model)
    randomize(model)
    path = tmp_path_factory.mktemp('web') / 'random.pth'
    meta = {'dataset_meta': {'classes': CLASSES}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    return path


@pytest.fixture(scope='module')
def server(checkpoint):
    folder = checkpoint.parent / 'examples'
    folder.mkdir()
    for name in ('one.png', 'two.png'):
        (folder / name).write_bytes(picture(len(name)))
    server = Server(checkpoint, folder)
    yield server
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0, server.lines
    assert not any('Traceback' in line for line in server.lines), server.lines


@pytest.fixture(scope='module')
def model(checkpoint):
    return init_detector(CONFIG, checkpoint, 'cpu')


@pytest.fixture
def tab(browser, server):
    """A page of the demo; no request leaves the server, nothing is written to the console, no dialog opens."""
    tab = browser.new_page(viewport={'width': 1280, 'height': 900})
    tab.set_default_timeout(TIMEOUT_MS)
    tab.requests, tab.messages = [], []
    tab.on('request', lambda request: tab.requests.append(request.url))
    tab.on('console', lambda message: tab.messages.append(message.text))
    tab.on('pageerror', lambda error: tab.messages.append(str(error)))
    tab.on('dialog', lambda dialog: (tab.messages.append(dialog.message), dialog.dismiss()))
    tab.goto(server.url)
    tab.wait_for_selector('#facts span')
    yield tab
    assert not [url for url in tab.requests if not url.startswith((server.url, 'blob:', 'data:'))]
    expected = 'Failed to load resource: the server responded with a status of 422'
    assert not [text for text in tab.messages if not text.startswith(expected)]
    tab.close()


def upload(tab, *images: tuple[str, bytes]) -> None:
    """Choose files, and wait for the picture of the last."""
    files = [{'name': name, 'mimeType': 'image/png', 'buffer': data} for name, data in images]
    tab.set_input_files('#files', files)
    tab.wait_for_selector(f'#picture:not(.stale)[alt^="{images[-1][0]}"]')


def detected(model, data: bytes):
    image = np.asarray(PIL.Image.open(io.BytesIO(data)).convert('RGB'))[..., ::-1]
    return look_at(model, np.ascontiguousarray(image))


def test_detections_equal_look_at(server, model):
    answer = server.detect(picture())
    look = detected(model, picture())
    found = look.sample.pred_instances
    assert (answer['width'], answer['height'], answer['layers']) == (120, 90, 2)
    assert [d['label'] for d in answer['detections']] == found.labels.tolist()
    np.testing.assert_allclose([d['score'] for d in answer['detections']], found.scores, atol=1e-6)
    np.testing.assert_allclose([d['bbox'] for d in answer['detections']], found.bboxes, atol=1e-4)
    assert set(answer['seconds']) == {'waited', 'preprocess', 'inference', 'postprocess'}
    assert all(value >= 0 for value in answer['seconds'].values())
    for index in (0, 5):
        layers = json.loads(server.ask(f'/api/images/{answer["id"]}/refinement/{index}')[2])
        expected = look.boxes_xyxy_px[:, look.query_of(index)]
        np.testing.assert_allclose([layer['bbox'] for layer in layers], expected, atol=1e-3)
        assert layers[-1]['iou'] == pytest.approx(1)


def test_reduced_look_draws_the_same_points(checkpoint, model):
    demo = Demo(DetInferencer(CONFIG, checkpoint, 'cpu'))
    kept = demo.detect('a.png', picture()).look
    for mine, full in zip(kept.detection(3), detected(model, picture()).detection(3), strict=True):
        assert mine.layer == full.layer
        np.testing.assert_allclose(mine.xy_px, full.xy_px, atol=1e-4)
        np.testing.assert_allclose(mine.weights, full.weights, atol=1e-6)
    stored = sum(
        call.value.untyped_storage().nbytes() + call.output.untyped_storage().nbytes() for call in kept.calls
    )
    assert stored == 0


def test_selections_run_no_model(server, model):
    answer = server.detect(picture(1))
    look = detected(model, picture(1))
    for query, selection in (
        ('score_thr=0.6', Selection(0.6)),
        ('score_thr=0&labels=1,3', Selection(0, frozenset({1, 3}))),
        ('score_thr=0.2&top_k=2&labels=0,2,4', Selection(0.2, frozenset({0, 2, 4}), 2)),
        ('score_thr=0&labels=', Selection(0, frozenset())),
    ):
        status, headers, body = server.ask(f'/api/images/{answer["id"]}/detections.json?{query}')
        rows = json.loads(body)['detections']
        assert status == 200
        assert headers['content-disposition'] == "attachment; filename*=UTF-8''a.json"
        expected = selection(look.sample).pred_instances
        assert [row['label'] for row in rows] == expected.labels.tolist()
        np.testing.assert_allclose([row['score'] for row in rows], expected.scores, atol=1e-6)
    assert json.loads(server.ask(f'/api/images/{answer["id"]}')[2])['seconds'] == answer['seconds']


def test_bad_requests_get_an_error_message_and_the_server_keeps_running(server):
    job = server.detect(picture())['id']
    for path, status, says in (
        (f'/api/images/{job}/picture?score_thr=x', 422, "score_thr='x' is not a number"),
        (f'/api/images/{job}/picture?labels=6', 422, "labels='6' is not an integer from 0 to 5"),
        (f'/api/images/{job}/picture?top_k=-1', 422, "top_k='-1'"),
        (f'/api/images/{job}/picture?width=99999', 422, 'from 16 to 4096'),
        (f'/api/images/{job}/points/0?layer=3', 422, 'Layer 3 does not exist: there are 2 layers'),
        (f'/api/images/{job}/points/0?split=all', 422, 'split must be'),
        (f'/api/images/{job}/points/999', 404, 'Detection 999 does not exist'),
        ('/api/images/AAAAAAAAAAAAAAAAAAAAAA', 404, 'has expired'),
        ('/api/examples/7', 404, 'Example 7 does not exist'),
    ):
        answer = server.ask(path)
        assert answer[0] == status, answer
        assert says in json.loads(answer[2])['error']
    for data, says in (
        (b'', 'The file is empty.'),
        (b'GIF89a no image', 'This is not an image in JPEG, PNG, WebP, BMP or TIFF format.'),
        (picture()[:20], 'This is not an image'),
        (hundred_megapixels(), '10000 x 10000 = 100 megapixels; at most 2 are allowed'),
        (os.urandom(1_000_001), 'exceeds the limit of 1 MB'),
    ):
        status, _, body = server.ask('/api/images', 'POST', data)
        assert status == 422
        assert says in json.loads(body)['error']
    cut = server.detect(picture(suffix='JPEG')[:700] + b'\0' * 9, 'cut.jpg')  # its header is whole
    assert cut['state'] == 'done' or 'image cut.jpg cannot be decoded' in cut['error']
    for suffix in ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF'):
        answer = server.detect(picture(suffix=suffix), f'a.{suffix}')
        assert (answer['state'], answer['width'], answer['height']) == ('done', 120, 90)


def test_no_request_reaches_a_file_or_comes_from_another_site(server, checkpoint):
    secret = checkpoint.parent / 'examples/one.png'
    for path in (
        f'/file={secret}',
        f'/gradio_api/file={secret}',
        f'/{secret}',
        f'//{secret}',
        '/../ddetr/web/app.py',
        '/page.css/../../app.py',
        '/%2e%2e/%2e%2e/app.py',
        f'/api/examples/..%2f..%2f{secret}',
        f'/api/examples/{secret}',
        f'/api/images/{quote(str(secret), safe="")}/picture',
        f'/?path={secret}&file={secret}',
    ):
        status, _, body = server.ask(path)
        assert status == 404 or body == (ROOT / 'ddetr/web/page/index.html').read_bytes(), path
    # a path in place of an image, as upload name and as body
    for body in (json.dumps({'data': [{'path': str(secret)}]}), str(secret), f'file://{secret}'):
        assert server.ask(f'/api/images?name={secret}', 'POST', body)[0] == 422
    named = server.detect(picture(), '../../etc/passwd')
    assert named['name'] == 'passwd'
    assert server.ask('/api/images', 'POST', picture(), **{'Sec-Fetch-Site': 'cross-site'})[0] == 403
    assert server.ask('/', Host='attacker.example')[0] == 400
    headers = server.ask('/')[1]
    assert headers['content-security-policy'].startswith("default-src 'none'; script-src 'self';")
    assert 'access-control-allow-origin' not in headers


def test_ten_clients_at_once(server, model):
    """Each client gets the detections of its own image."""
    images = [picture(seed) for seed in range(10)]
    with ThreadPoolExecutor(10) as clients:
        answers = list(clients.map(server.detect, images))
    for data, answer in zip(images, answers, strict=True):
        found = detected(model, data).sample.pred_instances
        np.testing.assert_allclose([d['score'] for d in answer['detections']], found.scores, atol=1e-6)
    assert len({answer['id'] for answer in answers}) == 10


def test_queue_is_bounded_and_old_results_are_evicted():
    go = threading.Event()

    class Slow:
        def detect(self, name, data):
            assert go.wait(60)
            if name == 'bad':
                raise MemoryError('out of memory')
            return SimpleNamespace(nbytes=len(data))

    jobs = JobQueue(Slow(), longest=2, kept_bytes=2 * JOB_BYTES + 1500)
    first = jobs.submit('first', bytes(1000))
    while first.state != 'running':
        go.wait(0.01)
    bad, last = jobs.submit('bad', b'1'), jobs.submit('last', bytes(1000))
    with pytest.raises(QueueFull):
        jobs.submit('too much', b'1')
    assert [jobs.ahead(job) for job in (first, bad, last)] == [0, 1, 2]
    go.set()
    while jobs._ended < 3:
        threading.Event().wait(0.01)
    assert (bad.state, bad.error) == ('failed', 'The detector failed on this image: out of memory')
    assert jobs.get(first.id) is None
    assert jobs.get(bad.id) is bad
    assert jobs.get(last.id) is last


def test_threshold_classes_and_top_k_in_the_browser(tab, server):
    upload(tab, (MARKUP, picture()))
    rows = '#table tbody tr'

    def shown() -> list[list[str]]:
        return tab.eval_on_selector_all(rows, 'all => all.map(r => [...r.cells].map(c => c.textContent))')

    def count() -> int:
        return int(tab.inner_text('#count').split()[0])

    tab.fill('#threshold', '0')
    everything = count()
    tab.fill('#threshold', '0.55')
    assert 0 < count() < everything
    assert min(float(row[1]) for row in shown()) >= 0.55
    tab.fill('#threshold', '0')
    tab.fill('#top-k', '3')
    assert count() == 3
    tab.fill('#top-k', '')
    tab.click('#no-classes')
    assert count() == 0
    tab.check('.chips label:nth-child(2) input')
    assert count() > 0
    assert {row[0] for row in shown()} == {CLASSES[1]}  # its markup is text
    tab.wait_for_selector(f'#picture:not(.stale)[alt*="{count()} detections"]')
    assert sum('/api/images?' in url for url in tab.requests) == 1  # one upload
    assert tab.inner_text('#seconds').startswith('Preprocess ')


def test_clicking_a_detection_and_downloads(tab, model, tmp_path):
    data = picture(4)
    upload(tab, ('four.png', data))
    look = detected(model, data)
    tab.fill('#threshold', '0')
    tab.fill('#top-k', '4')
    tab.wait_for_selector('#picture:not(.stale)[alt*="4 detections"]')
    boxes = look.sample.pred_instances.bboxes[:4]
    smallest = int(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argmin())
    frame = tab.locator('#picture').bounding_box()
    x, y = ((boxes[smallest, :2] + boxes[smallest, 2:]) / 2).tolist()
    tab.click('#picture', position={'x': x / 120 * frame['width'], 'y': y / 90 * frame['height']})
    assert tab.get_attribute('#table tr[aria-selected=true]', 'data-index') == str(smallest)
    tab.wait_for_selector('#points:not(.stale):not([hidden])')
    tab.wait_for_selector('#refinement:not([hidden])')
    cells = tab.eval_on_selector_all('#refinement tbody tr', 'all => all.map(r => r.cells[1].textContent)')
    refined = look.boxes_xyxy_px[:, look.query_of(smallest)].tolist()
    assert [[float(value) for value in text.split()] for text in cells] == [
        pytest.approx(box, abs=0.06) for box in refined
    ]
    wide = tab.evaluate('document.querySelector("#points").naturalWidth')
    tab.select_option('#layer', '2')  # one panel of the two
    tab.wait_for_selector('#points:not(.stale)')
    assert tab.evaluate('document.querySelector("#points").naturalWidth') < wide
    tab.focus('#table tbody tr:nth-child(1)')
    tab.keyboard.press('Enter')
    assert tab.get_attribute('#table tr[aria-selected=true]', 'data-index') == '0'
    with tab.expect_download() as info:
        tab.click('#save-json')
    assert info.value.suggested_filename == 'four.json'
    content = json.loads(Path(info.value.path()).read_text())
    assert (content['image'], len(content['detections'])) == ('four.png', 4)
    with tab.expect_download() as info:
        tab.click('#save-picture')
    assert info.value.suggested_filename == 'four.png'
    assert PIL.Image.open(info.value.path()).size[0] >= 120


def test_several_images_examples_paste_and_webcam(tab):
    upload(tab, ('a.png', picture(1)), ('b.png', picture(2)))
    tab.click('#examples button:nth-child(1)')
    tab.wait_for_selector('#picture:not(.stale)[alt^="one.png"]')
    tab.evaluate(
        """async () => {
            const blob = await (await fetch('api/examples/1')).blob();
            const data = new DataTransfer();
            data.items.add(new File([blob], 'pasted.jpg', { type: 'image/jpeg' }));
            document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
        }"""
    )
    tab.wait_for_selector('#picture:not(.stale)[alt^="pasted.jpg"]')
    tab.click('#webcam')
    tab.click('#shoot')
    tab.wait_for_selector('#picture:not(.stale)[alt^="webcam.jpg"]')
    assert tab.locator('#strip button').count() == 5
    tab.click('#strip button[title="a.png"]')
    tab.wait_for_selector('#picture:not(.stale)[alt^="a.png"]')


def test_ten_tabs_at_once(browser, server, model):
    """Each tab shows the detections of its own image."""
    tabs = [browser.new_page() for _ in range(10)]
    for number, tab in enumerate(tabs):
        tab.set_default_timeout(TIMEOUT_MS)
        tab.goto(server.url)
        tab.wait_for_selector('#facts span')
        file = {'name': f'{number}.png', 'mimeType': 'image/png', 'buffer': picture(number)}
        tab.set_input_files('#files', file)
    for number, tab in enumerate(tabs):
        tab.wait_for_selector(f'#picture:not(.stale)[alt^="{number}.png"]')
        tab.fill('#threshold', '0')
        cells = tab.eval_on_selector('#table tbody tr', 'row => [...row.cells].map(c => c.textContent)')
        best = detected(model, picture(number)).sample.pred_instances[0]
        assert cells[0] == CLASSES[int(best.labels)]
        assert float(cells[1]) == pytest.approx(float(best.scores), abs=0.006)
        assert [float(v) for v in cells[2].split()] == pytest.approx(best.bboxes[0].tolist(), abs=0.51)
        tab.close()


def test_errors_are_shown_in_the_browser(tab):
    files = [
        {'name': 'broken.jpg', 'mimeType': 'image/jpeg', 'buffer': b'no image'},
        {'name': 'huge.png', 'mimeType': 'image/png', 'buffer': hundred_megapixels()},
        {'name': 'heavy.png', 'mimeType': 'image/png', 'buffer': os.urandom(1_000_001)},
    ]
    tab.set_input_files('#files', files)
    tab.wait_for_selector('.message:nth-child(3)')
    texts = tab.eval_on_selector_all('.message span', 'all => all.map(m => m.textContent)')
    assert texts == [
        'broken.jpg: This is not an image in JPEG, PNG, WebP, BMP or TIFF format.',
        'huge.png: The image has 10000 x 10000 = 100 megapixels; at most 2 are allowed.',
        'heavy.png: The file exceeds the limit of 1 MB.',
    ]
    upload(tab, ('good.png', picture()))


@pytest.mark.parametrize(('width', 'scheme'), [(1280, 'light'), (400, 'dark')])
def test_page_fits_the_window_and_is_legible(browser, server, width, scheme):
    tab = browser.new_page(viewport={'width': width, 'height': 900}, color_scheme=scheme)
    tab.set_default_timeout(TIMEOUT_MS)
    tab.goto(server.url)
    tab.wait_for_selector('#facts span')
    upload(tab, ('a.png', picture()))
    tab.fill('#threshold', '0')
    tab.click('#table tbody tr')
    tab.wait_for_selector('#points:not(.stale):not([hidden])')
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    page, ink = (
        tab.evaluate(f'getComputedStyle(document.body).{key}') for key in ('backgroundColor', 'color')
    )
    light, dark = (sum(map(int, color[4:-1].split(','))) for color in (page, ink))
    assert (light > dark + 400) if scheme == 'light' else (dark > light + 400)
    tab.close()


def test_detectors_without_deformable_attention_get_a_clear_message():
    """DETR refines boxes but samples nothing; Faster R-CNN has no queries at all."""
    for config, layers in (('detr_shapes', True), ('faster-rcnn_shapes', False)):
        model = init_detector(config, device='cpu')
        demo = Demo(SimpleNamespace(model=model, classes=CLASSES))
        found = demo.detect('a.png', picture())
        assert demo.num_layers(found) == 0
        assert bool(demo.refinement(found, 0)) is layers
        with pytest.raises(
            InputError, match='has no decoder with deformable attention, so there are no sampling'
        ):
            demo.points(found, 0, PointsView())


def test_wrong_start_options_give_one_clear_error(checkpoint, tmp_path, capsys):
    other = tmp_path / 'other.pth'
    torch.save({'state_dict': {'somebody.elses.weight': torch.zeros(2)}}, other)
    for arguments, says in (
        ([CONFIG, other], str(other)),
        ([CONFIG, checkpoint, '--examples', tmp_path / 'nowhere'], 'nowhere does not exist'),
        ([CONFIG, checkpoint, '--max-megapixels', '0'], '--max-megapixels 0: must be above 0'),
        ([CONFIG, checkpoint, '--host', '192.0.2.1'], '--host 192.0.2.1 --port 7860 is not available'),
    ):
        with pytest.raises(SystemExit, match='2'):
            main(['demo', *map(str, arguments)])
        shown = capsys.readouterr().err.splitlines()[-1]
        assert shown.startswith('error: ')
        assert says in shown
