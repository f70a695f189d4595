"""Fixtures for all tests."""

import gc
import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.logging import MMLogger

from tests.command_server import CommandServer
from tests.real_datasets import write_bccd, write_coco

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'
COMMAND_TIMEOUT = 300  # seconds


def pytest_collection_finish() -> None:
    """Exclude imported modules from garbage collection: mmengine collects for each dataset, 0.4 s each time."""
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def _ddetr_scope():
    """Let `Registry.build` find ddetr's components, as a Runner with `default_scope = 'ddetr'` does."""
    from mmengine.registry import init_default_scope

    init_default_scope('ddetr')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def double(monkeypatch):
    """Compute in float64, even where code converts to float32 with `Tensor.float`.

    CPUs differ in the order of their sums; in float64 that makes no difference that matters.
    """
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextmanager
def _messages(level: int) -> Iterator[list[str]]:
    """Collect messages of mmengine's current logger from `level` on, regardless of its configured level."""
    records = []
    handler = logging.Handler(level)
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    earlier = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(earlier)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    with _messages(logging.INFO) as records:
        yield records


@pytest.fixture
def warnings_logged() -> Iterator[list[str]]:
    with _messages(logging.WARNING) as records:
        yield records


@pytest.fixture(scope='session')
def repo_root() -> Path:
    return ROOT


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'{path} is absent: it belongs to the development machines, not to the project')
    return path


@pytest.fixture(scope='session')
def photographs() -> Path:
    """Folder of the photographs of `coco/` and `bccd/`, for tests that depend on pixel values."""
    return _shared('data')


@pytest.fixture(scope='session')
def coco_root(tmp_path_factory) -> Path:
    """Annotations of 128 + 128 COCO images in COCO's layout, with images of noise."""
    root = tmp_path_factory.mktemp('coco')
    write_coco(root)
    return root


@pytest.fixture(scope='session')
def bccd_root(tmp_path_factory) -> Path:
    """Annotations of BCCD's 364 images in Pascal VOC's layout, with images of noise."""
    root = tmp_path_factory.mktemp('bccd')
    write_bccd(root)
    return root


@pytest.fixture(scope='session')
def checkpoint_lists(tmp_path_factory) -> Path:
    """JSON files `{key: shape}` of other projects' checkpoints; see tests/fixtures/README.md."""
    folder = tmp_path_factory.mktemp('checkpoints')
    lists = json.loads(gzip.decompress((ROOT / 'tests/fixtures/checkpoint_keys.json.gz').read_bytes()))
    for name, shapes in lists.items():
        (folder / f'{name}.json').write_text(json.dumps(shapes))
    return folder


@pytest.fixture(scope='session')
def draw_shapes(tmp_path_factory) -> Callable[..., Path]:
    """Function that draws a dataset of shapes with the options of `ShapesRecipe` and returns its folder."""
    from ddetr.datasets.shapes import ShapesRecipe, make_shapes

    def draw(**recipe: int) -> Path:
        root = tmp_path_factory.mktemp('drawn') / 'shapes'
        make_shapes(root, ShapesRecipe(**recipe))
        return root

    return draw


@pytest.fixture(scope='session')
def tiny_shapes(draw_shapes) -> Path:
    """Dataset of 8 training and 4 validation images; do not change it."""
    return draw_shapes(num_train=8, num_val=4, size=64)


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    """Debian's Chromium with a fake webcam, controlled by Playwright.

    Module scope: Playwright keeps an event loop running, which `asyncio.run` in other tests does not allow.
    """
    sync_api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    if chromium is None:
        pytest.skip('Chromium is not installed: apt install chromium')
    camera = ['--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream']
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=['--no-sandbox', *camera])
        yield browser
        browser.close()


@pytest.fixture
def static_page_views(browser) -> Callable[[Path], Iterator[Any]]:
    """Function that opens an HTML file in a wide, light window and in a narrow, dark one, and yields each tab.

    It checks that the page makes no requests, prints nothing to the console, opens no dialog and fits the width.
    """

    def views(page: Path) -> Iterator[Any]:
        for width, scheme in ((1280, 'light'), (400, 'dark')):
            tab = browser.new_page(viewport={'width': width, 'height': 900}, color_scheme=scheme)
            requests, messages = [], []
            tab.on('request', lambda request, to=requests: to.append(request.url))
            tab.on('console', lambda message, to=messages: to.append(message.text))
            tab.on('dialog', lambda dialog, to=messages: to.append(dialog.message))
            tab.goto(page.as_uri())
            assert [url for url in requests if not url.startswith('data:')] == [page.as_uri()]
            assert messages == []
            assert tab.evaluate('document.documentElement.scrollWidth') <= width
            yield tab
            tab.close()

    return views


class TinyRun(NamedTuple):
    """Training run of `tests/configs/tiny_shapes.py` in its own process."""

    config: Path
    data_root: Path  # 8 training and 4 held-out images
    work_dir: Path
    checkpoint: Path  # after 2 epochs of 4 iterations
    output: str  # terminal output


def run_command(*command: str | Path, expect: int = 0, cwd: Path = ROOT, **env: str) -> str:
    """Run a command of the project in a second process; return its combined stdout and stderr."""
    words = [str(part) for part in command]
    is_ours = words[0] == sys.executable and (words[1] == '-m' or words[1].endswith('.py'))
    if is_ours and not env:
        code, said = _run_forked(words[1:], cwd)
    else:
        process = subprocess.run(
            words, cwd=cwd, env=_environment(**env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=COMMAND_TIMEOUT,
        )  # fmt: skip
        code, said = process.returncode, process.stdout
    assert code == expect, said[-4000:]
    return said


def _environment(**env: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != 'PYTEST_CURRENT_TEST'}
    return {**kept, 'OMP_NUM_THREADS': '1', **env}


_servers: list[CommandServer] = []


def _run_forked(words: list[str], cwd: Path) -> tuple[int, str]:
    """Run `python *words` from a process with the same environment; start that if there is none."""
    env = _environment()
    running = [server for server in _servers if server.process.poll() is None]
    server = next((server for server in running if server.env == env), None)
    if server is None:
        server = CommandServer(env)
        _servers.append(server)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, 'output')
        code = server.run(words, cwd, output, COMMAND_TIMEOUT)
        return code, output.read_text()


@pytest.fixture(scope='session', autouse=True)
def _close_servers() -> Iterator[None]:
    yield
    for server in _servers:
        if server.process.poll() is None:
            server.close()


@pytest.fixture(scope='session')
def run():
    """`run_command`, for tests that start second processes."""
    return run_command


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory, tiny_shapes) -> TinyRun:
    folder = tmp_path_factory.mktemp('tiny')
    data_root, work_dir, config = tiny_shapes, folder / 'run', folder / 'tiny.py'
    loaders = '\n'.join(
        f'{split}_dataloader = dict(dataset=dict(data_root={str(data_root)!r}))'
        for split in ('train', 'val', 'test')
    )
    config.write_text(f'_base_ = {str(ROOT / "tests/configs/tiny_shapes.py")!r}\n{loaders}\n')
    output = run_command(sys.executable, 'tools/train.py', config, '--work-dir', work_dir)
    return TinyRun(config, data_root, work_dir, work_dir / 'epoch_2.pth', output)
