"""Faults planted in a clean dataset, all at once: each is reported, and the cleaned copy can be trained on."""

import json
import re
import sys

import pytest

from ddetr.datasets.doctor import examine, fix, write_html
from tests.conftest import ROOT

from .planting import PLANTED


@pytest.fixture
def faulty(data):
    for plant in PLANTED.values():
        plant(data)
    return data.save()


def test_the_clean_dataset_has_no_fault(clean_root):
    assert examine(clean_root).faults == ()


def test_all_planted_faults_are_reported_in_one_run(faulty):
    report = examine(faulty)
    assert len(PLANTED) >= 30
    assert {fault.name for fault in report.faults} == set(PLANTED)
    order = [fault.severity for fault in report.faults]
    assert order == sorted(order, key=['error', 'warning', 'note'].index)
    counts = {fault.name: fault.count for fault in report.faults}
    assert counts['truncated image'] == counts['EXIF rotation'] == counts['unknown category'] == 1
    assert counts['missing image'] == 2  # the file name of another machine is one, too
    assert counts['duplicate image id'] == 2
    text = report.text()
    assert all(f'{name}: ' in text for name in PLANTED)


@pytest.mark.parametrize('name', PLANTED)
def test_single_fault_is_reported(data, name):
    alone = {'class in one split only', 'class imbalance', 'category ids from 0 or with gaps'}
    cause = 'empty class name or surrounding spaces' if name in alone else name
    if name in ('more objects than the metric counts', 'unusual size for its class'):
        cause = 'more objects than queries'
    PLANTED[cause](data)
    assert name in {fault.name for fault in examine(data.save()).faults}


def test_the_fixed_copy_has_no_fixable_fault_and_trains(faulty, tmp_path, run):
    copy = tmp_path / 'fixed'
    lines = fix(examine(faulty), copy)
    assert any('1 truncated images dropped' in line for line in lines)
    left = examine(copy)
    assert [fault.name for fault in left.faults if fault.fix or fault.severity == 'error'] == []
    classes = len(json.loads((copy / 'annotations/instances_train.json').read_text())['categories'])
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(ROOT / "tests/configs/tiny_shapes.py")!r}\n'
        f'model = dict(num_queries=400, bbox_head=dict(num_classes={classes}))\n'
        + '\n'.join(
            f'{loader}_dataloader = dict(dataset=dict(data_root={str(copy)!r}, '
            f"ann_file='annotations/instances_{split}.json', data_prefix=dict(img='{split}/')))"
            for loader, split in (('train', 'train'), ('val', 'val'), ('test', 'val'))
        )
        + "\ntrain_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=3, val_interval=100)\n"
        'param_scheduler = []\n'
    )
    output = run(sys.executable, 'tools/train.py', config, '--work-dir', tmp_path / 'run')
    assert 'Dataset check' in output  # what only a person can mend is still named
    assert (tmp_path / 'run/last_checkpoint').exists()


def test_fix_keeps_boxes_and_corrects_their_numbers(data, tmp_path):
    wrong = [dict(box) for box in data.boxes(29)]
    for name in ('boxes in the wrong coordinate order', 'fractions instead of pixels'):
        PLANTED[name](data)
    report = examine(data.save())
    fix(report, tmp_path / 'fixed')
    fixed = json.loads((tmp_path / 'fixed/annotations/instances_train.json').read_text())
    image_id = next(i['id'] for i in fixed['images'] if i['file_name'] == data.file(29).name)
    boxes = [a['bbox'] for a in fixed['annotations'] if a['image_id'] == image_id]
    assert boxes == [pytest.approx(box['bbox'], abs=1e-6) for box in wrong]


def test_page_escapes_names_and_makes_no_requests(data, tmp_path):
    evil = '<script>alert("x")</script><img src=http://example.com/x.png>'
    data.train['categories'][0]['name'] = data.val['categories'][0]['name'] = evil
    old = data.file(0)
    data.train['images'][0]['file_name'] = '<b onload=x>&.jpg'
    old.rename(old.with_name('<b onload=x>&.jpg'))
    data.add_box(0, [5, 5, 0, 0])
    data.add_box(1, [-15, 20, 40, 30])
    page = tmp_path / 'page.html'
    report = examine(data.save())
    write_html(report, page, title='<i>mine</i>')
    text = page.read_text()
    assert '&lt;script&gt;' in text
    assert '&lt;b onload=x&gt;' in text
    for tag in ('<script', '<b ', '<i>', '<img src=http', '<link', '@import', 'url('):
        assert tag not in text
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) >= 2
    assert all(source.startswith('data:image/jpeg;base64,') for source in sources)


def test_the_page_stays_below_five_megabytes(faulty, tmp_path, monkeypatch):
    monkeypatch.setattr('ddetr.datasets.doctor.html.BUDGET', 100_000)
    write_html(examine(faulty), tmp_path / 'page.html')
    assert 50_000 < (tmp_path / 'page.html').stat().st_size < 200_000


@pytest.mark.parametrize('value', [2**70, {'a': 1}, [1], None, '', -1])
def test_ids_and_names_of_any_kind_are_reported_and_fixed(data, tmp_path, value):
    data.train['categories'][0]['id'] = value
    data.train['annotations'][0]['id'] = data.train['images'][3]['id'] = value
    data.train['categories'][1]['name'] = value
    report = examine(data.save(), images=False)
    assert report.of('error')
    fix(report, tmp_path / 'fixed')
    assert [fault.name for fault in examine(tmp_path / 'fixed').faults if fault.fix] == []
