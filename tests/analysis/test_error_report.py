"""Error report compared with pycocotools, tidecv and manual calculations; the page in a browser."""

import json
import re
import sys
from html.parser import HTMLParser
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr.analysis.error_report import ReportOptions, evaluate_run, measures, read_dataset, write_report
from ddetr.analysis.error_report.kinds import KINDS, error_costs, find_errors
from ddetr.analysis.error_report.runs import FOUND, check_same_dataset
from ddetr.engine.config import load_config
from ddetr.registry import DATASETS
from ddetr.utils import InputError

CLASSES = ('cat', '<b>dog</b>', '"><script>alert(1)</script>', "o'wl & co", 'unseen')
SIZE = 120
NUM_OBJECTS = 61  # of each class but the last: prime, so that no recall is a multiple of 0.01 but 0 and 1


class Scene:
    """Folder with images, annotations in COCO format, and noisy detections."""

    def __init__(self, folder, seed=0, crowds=True):
        rng = np.random.default_rng(seed)
        self.folder, self.ann_file = folder, folder / 'ann.json'
        (folder / 'img').mkdir(parents=True)
        self.images = [
            {'id': 10 * i + 7, 'file_name': f'<i>{i}&.jpg', 'width': SIZE, 'height': 90} for i in range(40)
        ]
        for image in self.images:
            pixels = rng.integers(0, 256, (90, SIZE, 3), dtype=np.uint8)
            (folder / 'img' / image['file_name']).write_bytes(cv2.imencode('.jpg', pixels)[1].tobytes())
        used = self.images[:-3]  # the last have no object
        self.truth, self.found = [], []
        for k in range(4):
            for _ in range(NUM_OBJECTS):
                self._add(rng, used[rng.integers(len(used))]['id'], k, crowd=False)
        for n in range(12 if crowds else 0):
            self._add(rng, used[n]['id'], n % 4, crowd=True)
        for image in self.images:
            for _ in range(rng.integers(0, 5)):
                self._detect(rng, image['id'], int(rng.integers(4)), self._box(rng))
        categories = [{'id': 3 * k + 2, 'name': name} for k, name in enumerate(CLASSES)]
        coco = {'images': self.images, 'annotations': self.truth, 'categories': categories}
        self.ann_file.write_text(json.dumps(coco))
        self.detections = folder / 'found.json'
        self.detections.write_text(json.dumps(self.found))

    def _box(self, rng):
        w, h = rng.uniform(8, 40, 2)
        return np.array([rng.uniform(0, SIZE - w), rng.uniform(0, 90 - h), w, h])

    def _add(self, rng, image, label, crowd):
        box = self._box(rng)
        row = {'id': len(self.truth), 'image_id': image, 'category_id': 3 * label + 2, 'iscrowd': int(crowd)}
        self.truth.append({**row, 'bbox': box.tolist(), 'area': float(box[2] * box[3])})
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            guess = int(rng.integers(4)) if rng.random() < 0.25 else label
            self._detect(rng, image, guess, box + rng.normal(0, rng.choice([0.5, 3, 9]), 4))

    def _detect(self, rng, image, label, box):
        box = [*box[:2].tolist(), *np.maximum(box[2:], 1).tolist()]
        row = {'image_id': image, 'category_id': 3 * label + 2, 'bbox': box, 'score': float(rng.random())}
        self.found.append(row)

    def config(self, **dataset):
        path = self.folder / 'config.py'
        given = {'type': 'CocoDataset', 'ann_file': str(self.ann_file), 'test_mode': True, 'pipeline': []}
        given |= {'data_prefix': {'img': str(self.folder / 'img')}} | dataset
        path.write_text(f'test_dataloader = dict(dataset={given!r})\n')
        return path


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    return Scene(tmp_path_factory.mktemp('scene') / 'data')


@pytest.fixture(scope='module')
def dataset(scene):
    return read_dataset(load_config(scene.config()))


@pytest.fixture(scope='module')
def run(scene, dataset):
    return evaluate_run(scene.detections, scene.config(), dataset, 'first <model>')


@pytest.fixture(scope='module')
def official(scene):
    """Evaluate the files directly with pycocotools."""
    return _official(scene, None)


def _official(scene, image_ids):
    truth = COCO()
    # object ids from 1: COCOeval takes 0 as not found
    rows = [{**row, 'id': row['id'] + 1} for row in scene.truth]
    truth.dataset = {**json.loads(scene.ann_file.read_text()), 'annotations': rows}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(scene.found), 'bbox')
    if image_ids is not None:
        evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def test_table_and_curves_equal_pycocotools(run, official):
    np.testing.assert_array_equal(measures.summary(run), official.stats)
    precision = official.eval['precision'][:, :, :4, 0, 2]
    np.testing.assert_allclose(measures.mean_curve(run, 0.75), precision[5].mean(1), atol=1e-12)
    np.testing.assert_array_equal(measures.mean_curve(run, 0.5, 2), precision[0, :, 2])
    assert measures.mean_curve(run, 0.5, 4) is None  # the class without objects


def test_ap_by_count_equals_pycocotools_on_the_image_subset(run, dataset, scene):
    count = {image['id']: 0 for image in scene.images}
    for row in scene.truth:
        count[row['image_id']] += 1 - row['iscrowd']
    groups = {group.name: group for group in measures.ap_by_count(run, dataset)}
    assert groups['0'].images >= 3
    assert groups['0'].ap == -1
    assert sum(group.images for group in groups.values()) == 40
    for name, low, high in (('4-7', 4, 7), ('8-15', 8, 15)):
        ids = [image for image, n in count.items() if low <= n <= high]
        stats = _official(scene, ids).stats
        assert groups[name].images == len(ids) > 3
        assert (groups[name].ap, groups[name].ap50) == pytest.approx(tuple(stats[:2]), abs=1e-12)


@pytest.mark.parametrize('crowds', [False, True])
def test_error_kinds_and_costs_equal_tidecv(tmp_path, monkeypatch, crowds):
    for drawing in ('seaborn', 'pandas'):  # tidecv needs them for its plots only
        monkeypatch.setitem(sys.modules, drawing, MagicMock())
    tidecv = pytest.importorskip('tidecv')
    for seed in (1, 2):
        scene = Scene(tmp_path / str(seed), seed, crowds)
        truth, found = tidecv.Data('truth'), tidecv.Data('found')
        for image in scene.images:
            truth.add_image(image['id'], '')
        for row in scene.truth:
            add = truth.add_ignore_region if row['iscrowd'] else truth.add_ground_truth
            add(row['image_id'], row['category_id'], row['bbox'])
        for row in scene.found:
            found.add_detection(row['image_id'], row['category_id'], row['score'], row['bbox'])
        theirs = tidecv.TIDE().evaluate(truth, found, mode=tidecv.TIDE.BOX)
        dataset = read_dataset(load_config(scene.config()))
        run = evaluate_run(scene.detections, scene.config(), dataset)
        errors = find_errors(run, dataset)
        costs = error_costs(run, dataset, errors)
        assert costs.ap50 * 100 == pytest.approx(theirs.ap, abs=1e-6)
        assert costs.ap50 == pytest.approx(measures.summary(run)[1], abs=1e-9)
        assert errors.counts() == list(theirs.count_errors().values())
        assert min(errors.counts()) > 3
        gains = [100 * gain for gain in costs.by_kind]
        assert gains == pytest.approx(list(theirs.fix_main_errors().values()), abs=1e-6)
        special = list(theirs.fix_special_errors().values())
        assert [100 * costs.false_positives, 100 * costs.false_negatives] == pytest.approx(special, abs=1e-6)


def test_confusions_equal_a_naive_loop(run, dataset, scene):
    expected = np.zeros((6, 6), dtype=int)
    kept = {(r['image_id'], r['score']) for r in scene.found if r['score'] >= 0.4}
    for image in scene.images:
        objects = [r for r in scene.truth if r['image_id'] == image['id'] and not r['iscrowd']]
        ignored = {
            float(run.scores[n])
            for n in np.flatnonzero(
                (run.state == -1) & (np.array(dataset.image_ids)[run.image] == image['id'])
            )
        }
        rows = [r for r in scene.found if (image['id'], r['score']) in kept and r['image_id'] == image['id']]
        rows = [r for r in rows if r['score'] not in ignored]
        pairs = sorted(
            ((_iou(r['bbox'], o['bbox']), i, j) for i, r in enumerate(rows) for j, o in enumerate(objects)),
            reverse=True,
        )
        free_rows, free_objects = set(range(len(rows))), set(range(len(objects)))
        for iou, i, j in pairs:
            if iou >= 0.5 and i in free_rows and j in free_objects:
                free_rows.remove(i)
                free_objects.remove(j)
                expected[objects[j]['category_id'] // 3, rows[i]['category_id'] // 3] += 1
        for j in free_objects:
            expected[objects[j]['category_id'] // 3, 5] += 1
        for i in free_rows:
            expected[5, rows[i]['category_id'] // 3] += 1
    np.testing.assert_array_equal(measures.confusion(run, dataset, 0.4), expected)
    (a, b, n), *_ = measures.most_confused(expected, 3)
    assert n == expected[a, b] == (expected[:5, :5] * ~np.eye(5, dtype=bool)).max()


def _iou(a, b):
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    overlap = max(w, 0) * max(h, 0)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)


def test_calibration_and_image_errors_by_hand(run, dataset):
    found = measures.calibration(run)
    counted = [(s, st == FOUND) for s, st in zip(run.scores, run.state, strict=True) if st != -1]
    bins = [[c for c in counted if i / 10 <= c[0] < (i + 1) / 10] for i in range(10)]
    assert found.counts.tolist() == [len(b) for b in bins]
    np.testing.assert_allclose(found.precision, [np.mean([hit for _, hit in b]) for b in bins])
    gaps = [abs(np.mean([s for s, _ in b]) - np.mean([hit for _, hit in b])) * len(b) for b in bins]
    assert found.error == pytest.approx(sum(gaps) / len(counted))
    by_image = measures.image_errors(run, dataset, 0.5)
    strong = run.scores >= 0.5
    assert by_image.false.sum() == (strong & (run.state == 0)).sum()
    assert by_image.missed.sum() == dataset.num_objects - (strong & (run.state == FOUND)).sum()
    worst = measures.worst_first(by_image.total, 3)
    assert by_image.total[worst[0]] == by_image.total.max()


@DATASETS.register_module()
class NumberedImages(BaseDataset):
    """Dataset of three images without an annotation file, with names as ids."""

    METAINFO = {'classes': ('cat', 'dog')}

    def load_data_list(self):
        boxes = [
            [{'bbox': [10, 10, 50, 40], 'bbox_label': 1}],
            [],
            [{'bbox': [0, 0, 30, 30], 'bbox_label': 0}],
        ]
        return [
            {'img_id': f'name-{i}', 'img_path': f'/nowhere/{i}.jpg', 'instances': b}
            for i, b in enumerate(boxes)
        ]


def test_a_dataset_without_a_file_is_reported_from_its_samples(tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("test_dataloader = dict(dataset=dict(type='NumberedImages', pipeline=[]))\n")
    dataset = read_dataset(load_config(config))
    found = tmp_path / 'found.json'
    rows = [
        {'image_id': 'name-0', 'category_id': 2, 'bbox': [10, 10, 40, 30], 'score': 0.9},
        {'image_id': 'name-1', 'category_id': 1, 'bbox': [10, 10, 40, 30], 'score': 0.8},
    ]
    found.write_text(json.dumps(rows))
    run = evaluate_run(found, config, dataset)
    assert measures.summary(run)[0] == pytest.approx(0.5)  # all of one class, nothing of the other
    write_report(dataset, [run], tmp_path / 'report.html', ReportOptions())
    assert 'the image file cannot be read' in (tmp_path / 'report.html').read_text()


def test_report_without_any_detection(scene, dataset, tmp_path):
    (tmp_path / 'none.json').write_text('[]')
    run = evaluate_run(tmp_path / 'none.json', scene.config(), dataset)
    errors = find_errors(run, dataset)
    assert errors.counts() == [0, 0, 0, 0, 0, 4 * NUM_OBJECTS]
    assert error_costs(run, dataset, errors).ap50 == 0
    write_report(dataset, [run], tmp_path / 'report.html', ReportOptions())


@pytest.mark.parametrize(
    ('rows', 'sentence'),
    [
        ('{"images": []}', "hold a dict, not the list of COCO's result format"),
        ('[{"image_id": 7', 'are not valid JSON'),
        ([{'image_id': 8}], 'row 0 has image_id 8'),
        ([{'category_id': 1}], 'row 0 has category_id 1, but the dataset has the categories 2, 5, 8, 11, 14'),
        ([{'score': float('nan')}], 'row 0 needs a bbox of four finite numbers'),
        ([{'bbox': [1, 2, 3]}], 'row 0 needs a bbox of four finite numbers'),
        ([{'bbox': None}], 'row 0 needs a bbox of four finite numbers'),
        ([3], "row 0 has no 'image_id'"),
    ],
)  # fmt: skip
def test_invalid_detections_give_one_clear_error(scene, dataset, tmp_path, rows, sentence):
    path = tmp_path / 'found.json'
    if isinstance(rows, list):
        good = {'image_id': 7, 'category_id': 2, 'bbox': [1, 1, 5, 5], 'score': 0.5}
        rows = json.dumps([{**good, **row} if isinstance(row, dict) else row for row in rows])
    path.write_text(rows)
    with pytest.raises(InputError, match=re.escape(sentence)):
        evaluate_run(path, scene.config(), dataset)
    with pytest.raises(InputError, match='do not exist: write them with'):
        evaluate_run(tmp_path / 'absent.json', scene.config(), dataset)


def test_two_models_must_agree_on_classes_and_images(scene, dataset):
    fewer = read_dataset(load_config(scene.config(metainfo={'classes': CLASSES[:2]})))
    with pytest.raises(InputError, match='the two models have different classes'):
        check_same_dataset(dataset, fewer)
    swapped = read_dataset(
        load_config(scene.config(metainfo={'classes': (CLASSES[0], *CLASSES[2:0:-1], *CLASSES[3:])}))
    )
    with pytest.raises(InputError, match='different classes, the first at index 1: '):
        check_same_dataset(dataset, swapped)
    part = read_dataset(load_config(scene.config(indices=10)))
    with pytest.raises(InputError, match='30 are only in the first and 0 only in the second'):
        check_same_dataset(dataset, part)
    check_same_dataset(dataset, read_dataset(load_config(scene.config())))


@pytest.fixture(scope='module')
def page(scene, dataset, run, tmp_path_factory):
    """A report on two runs, with HTML in the names of classes, files and models."""
    other = json.loads(scene.detections.read_text())[::2]
    path = tmp_path_factory.mktemp('page') / 'report.html'
    second = path.with_name('second.json')
    second.write_text(json.dumps(other))
    runs = [run, evaluate_run(second, scene.config(), dataset, '<img src=x onerror=alert(1)>')]
    write_report(dataset, runs, path, ReportOptions('A <u>title</u>'))
    return path


class Tags(HTMLParser):
    """All tags, and all texts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.addresses = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ('href', 'src', 'xlink:href')]

    def handle_data(self, data):
        self.texts.append(data)


def test_names_from_data_are_escaped_and_no_requests_are_made(page):
    text = page.read_text()
    parsed = Tags(text)
    assert not parsed.tags & {'script', 'b0', 'i0', 'u', 'img', 'link', 'iframe'}
    assert all(address.startswith(('data:image/jpeg;base64,', '#photo-')) for address in parsed.addresses)
    assert 'http' not in re.sub('http-equiv', '', text)
    for name in (*CLASSES, 'A <u>title</u>', '<img src=x onerror=alert(1)>', '<i>0&.jpg'):
        shown = [t for t in parsed.texts if name in t]
        assert shown or name.startswith('<i>'), name
    assert any(t.startswith('<i>') and t.endswith('&.jpg') for t in parsed.texts)
    assert len(text) < 5e6


def test_the_page_shows_pycocotools_numbers(page, official):
    texts = [t.strip() for t in Tags(page.read_text()).texts if t.strip()]
    start = texts.index('Average precision and recall')
    for name, value in zip((*measures.STATS, *measures.RECALLS), official.stats, strict=True):
        at = texts.index(name, start)
        assert texts[at + 1] == (f'{value:.3f}' if value >= 0 else '-')
    for kind in KINDS:
        assert kind in texts


def test_page_in_browser(page, static_page_views):
    """The page is static, its labels are large enough to read, and names are shown as text."""
    for tab in static_page_views(page):
        sizes = tab.eval_on_selector_all(
            'svg.photo text', 'all => all.map(t => t.getBoundingClientRect().height)'
        )
        assert min(sizes) > 9
        loaded = tab.eval_on_selector_all('svg image', 'all => all.map(i => i.getBoundingClientRect().width)')
        assert min(loaded) > 200
        assert '<b>dog</b>' in tab.inner_text('body')


def test_command_runs_a_checkpoint_and_rejects_an_invalid_one(tiny_run, run_tool, tmp_path):
    out = tmp_path / 'report.html'
    assert run_tool(tiny_run.config, tiny_run.checkpoint, '--out', out).splitlines()[-1] == str(out)
    assert '4 images' in out.read_text()
    other = tmp_path / 'other.pth'
    other.write_bytes(b'no checkpoint')
    with pytest.raises(SystemExit, match='2'):
        run_tool(tiny_run.config, other)
    assert 'other.pth' in run_tool.errors()


@pytest.fixture
def run_tool(monkeypatch, capsys, repo_root):
    import runpy

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['error_report.py', *map(str, arguments)])
        runpy.run_path(str(repo_root / 'tools/analysis/error_report.py'), run_name='__main__')
        return capsys.readouterr().out

    call.errors = lambda: capsys.readouterr().err
    return call
