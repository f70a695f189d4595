"""Dataset doctor for configs, on the command line, and as a summary at the start of training."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from ddetr.apis import check_data
from ddetr.apis.data_check import check_before_training
from ddetr.datasets import CocoDataset
from ddetr.datasets.doctor.checks import CHECKS
from ddetr.utils import ConfigError
from tests.conftest import ROOT

TRAIN = 'annotations/instances_train2017.json'


@pytest.fixture(scope='module')
def drawn(draw_shapes) -> Path:
    return draw_shapes(num_train=12, num_val=4, size=64, seed=2)


@pytest.fixture
def root(drawn, tmp_path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / 'shapes'))


def edit(root, change):
    coco = json.loads((root / TRAIN).read_text())
    change(coco)
    (root / TRAIN).write_text(json.dumps(coco))


def write_config(root, path) -> Path:
    loaders = (
        f'{s}_dataloader = dict(dataset=dict(data_root={str(root)!r}))' for s in ('train', 'val', 'test')
    )
    path.write_text(f'_base_ = {str(ROOT / "tests/configs/tiny_shapes.py")!r}\n' + '\n'.join(loaders))
    return path


def test_config_provides_splits_queries_sizes_and_stride(root, tmp_path):
    report = check_data(write_config(root, tmp_path / 'config.py'))
    assert [(split.name, split.images) for split in report.splits] == [('train', 12), ('val', 4)]
    limits = report.evidence.limits
    assert limits.num_queries == 12
    assert limits.sizes == ((112, 112), (128, 128), (144, 144))
    assert limits.stride == 8


def test_command_prints_the_report_writes_the_page_and_sets_the_exit_status(root, tmp_path, run):
    command = (sys.executable, 'tools/data/doctor.py')
    edit(root, lambda coco: coco['annotations'][0].update(category_id=99))
    page, copy = tmp_path / 'page.html', tmp_path / 'clean'
    output = run(*command, root, '--html', page, '--fix', copy, expect=1)
    assert 'ERROR  unknown category: 1' in output
    assert '1 boxes of unknown categories dropped' in output
    assert 'unknown category' in page.read_text()
    run(*command, copy, '--no-images', '--html', page, expect=0)


def test_the_docs_list_all_checks():
    docs = (ROOT / 'docs/data_doctor.md').read_text()
    for each in CHECKS:
        assert f'| {each.name} | {each.severity} | {each.fix} |' in docs


class Log:
    def __init__(self):
        self.text = ''

    def warning(self, message, *args):
        self.text += message % args


def start(root, rank=0, **keys) -> str:
    """Return the log messages at the start of training on these images."""
    dataset = CocoDataset(
        data_root=str(root), ann_file=TRAIN, data_prefix={'img': 'train2017/'}, pipeline=[], lazy_init=True
    )
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))
    cfg, log = Config({'model': {'num_queries': 30}, **keys}), Log()
    check_before_training(SimpleNamespace(cfg=cfg, rank=rank, logger=log, train_loop=loop, val_loop=None))
    return log.text


def test_training_starts_with_a_summary_of_data_warnings(root):
    assert start(root) == ''

    def flatten(coco):
        coco['annotations'][0]['bbox'][2] = 0

    edit(root, flatten)
    assert 'box without area: 1' in start(root)
    assert len(start(root).splitlines()) <= 7
    assert start(root, rank=1) == ''
    assert start(root, check_data=False) == ''


def test_training_does_not_start_on_normalised_boxes(root):
    def normalise(coco):
        sizes = {image['id']: (image['width'], image['height']) * 2 for image in coco['images']}
        for box in coco['annotations'][::2]:
            box['bbox'] = [v / side for v, side in zip(box['bbox'], sizes[box['image_id']], strict=True)]

    edit(root, normalise)
    with pytest.raises(ConfigError, match=r'fractions instead of pixels.*check_data=False'):
        start(root)
    assert start(root, check_data=False) == ''
