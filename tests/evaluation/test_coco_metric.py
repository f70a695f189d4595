import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr.datasets import COCO_CLASSES, CocoDataset
from ddetr.datasets.shapes import ShapesRecipe, make_shapes
from ddetr.evaluation import CocoMetric, backend, coco_metric
from ddetr.structures import Annotations, DetDataSample
from ddetr.utils.errors import InputError

from .simple_ap import average_precision

NUMBERS = ('AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100')
ROWS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@pytest.fixture(params=['faster-coco-eval', 'pycocotools'], autouse=True)
def library(request, monkeypatch):
    """The library under the metric; the truth that the tests compare with is always pycocotools'."""
    if request.param == 'pycocotools':
        monkeypatch.setattr(backend, 'COCOeval_faster', None)
        monkeypatch.setattr(backend, 'COCOeval', COCOeval, raising=False)
        monkeypatch.setattr(coco_metric, 'COCO', COCO)
    else:
        pytest.importorskip('faster_coco_eval')


@pytest.fixture(scope='module')
def real_file(coco_root):
    return coco_root / 'annotations/instances_val2017.json'


@pytest.fixture(params=['coco', 'shapes'])
def any_file(request, tmp_path):
    """Real annotations, and drawn ones with crowds and areas that are not the boxes'."""
    if request.param == 'coco':
        return request.getfixturevalue('real_file')
    make_shapes(tmp_path / 'shapes', ShapesRecipe(num_train=1, num_val=40, size=64))
    path = tmp_path / 'shapes/annotations/instances_val2017.json'
    coco = json.loads(path.read_text())
    for annotation in coco['annotations'][::7]:
        annotation['iscrowd'] = 1
    path.write_text(json.dumps(coco))
    return path


def _noisy_detections(ann_file, num_images=128):
    """{image id: (boxes x1 y1 x2 y2, scores, labels)}: the truth shaken, some missed, doubled, mislabelled."""
    coco = json.loads(ann_file.read_text())
    label_of = {category['id']: label for label, category in enumerate(coco['categories'])}
    classes = len(label_of)
    rng = np.random.default_rng(0)
    detections = {}
    for image in coco['images'][:num_images]:
        boxes, labels = [], []
        for annotation in coco['annotations']:
            if annotation['image_id'] != image['id'] or rng.random() < 0.1:
                continue
            box = _xyxy(annotation['bbox'])
            for _ in range(rng.integers(1, 3)):
                shake = rng.normal(0, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
                boxes.append(box + shake)
                labels.append(
                    label_of[annotation['category_id']] if rng.random() < 0.9 else rng.integers(classes)
                )
        boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        detections[image['id']] = (
            boxes,
            rng.random(len(boxes)).astype(np.float32),
            np.array(labels, dtype=int),
        )
    return detections


def _xyxy(box_xywh):
    x, y, w, h = box_xywh
    return np.array([x, y, x + w, y + h])


def _samples(detections, annotations=None):
    samples = []
    for image_id, (boxes, scores, labels) in detections.items():
        found = InstanceData(
            bboxes=torch.from_numpy(boxes), scores=torch.from_numpy(scores), labels=torch.from_numpy(labels)
        )
        sample = DetDataSample(metainfo={'img_id': image_id}, pred_instances=found)
        if annotations is not None:
            sample.set_metainfo({'annotations': annotations[image_id]})
        samples.append(sample.to_dict())
    return samples


def _evaluate(detections, classes=COCO_CLASSES, **arguments):
    metric = CocoMetric(**arguments)
    metric.dataset_meta = {'classes': classes}
    samples = _samples(detections)
    for start in range(0, len(samples), 3):
        metric.process(None, samples[start : start + 3])
    return metric.evaluate(len(samples))


def _classes(ann_file):
    return [category['name'] for category in json.loads(ann_file.read_text())['categories']]


def test_equals_a_direct_run_of_pycocotools(any_file, tmp_path):
    detections = _noisy_detections(any_file)
    truth = COCO(str(any_file))
    categories = sorted(truth.getCatIds())
    results = [
        {
            'image_id': image_id, 'category_id': categories[label], 'score': float(score),
            'bbox': [float(v) for v in (b[0], b[1], b[2] - b[0], b[3] - b[1])],
        }
        for image_id, found in detections.items()
        for b, score, label in zip(*found, strict=True)
    ]  # fmt: skip
    (tmp_path / 'results.json').write_text(json.dumps(results))
    by_hand = COCOeval(truth, truth.loadRes(str(tmp_path / 'results.json')), 'bbox')
    by_hand.evaluate()
    by_hand.accumulate()
    by_hand.summarize()

    items = [*ROWS, 'AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100']
    ours = _evaluate(detections, _classes(any_file), ann_file=str(any_file), metric_items=items)

    assert 0.2 < by_hand.stats[0] < 0.8  # neither trivially good nor bad
    assert list(ours) == [f'coco/bbox_{item}' for item in items]
    np.testing.assert_allclose(list(ours.values()), by_hand.stats, atol=1e-6)


def test_equals_the_definition_of_ap(any_file):
    detections = _noisy_detections(any_file, num_images=40)
    coco = json.loads(any_file.read_text())
    label_of = {category['id']: label for label, category in enumerate(coco['categories'])}
    truths = [
        {
            'image': a['image_id'], 'label': label_of[a['category_id']], 'crowd': bool(a['iscrowd']),
            'box': _xyxy(a['bbox']),
        }
        for a in coco['annotations']
        if a['image_id'] in detections
    ]  # fmt: skip
    assert any(truth['crowd'] for truth in truths)
    found = [
        {'image': image_id, 'label': label, 'box': box.astype(float), 'score': score}
        for image_id, rows in detections.items()
        for box, score, label in zip(*rows, strict=True)
    ]

    ours = _evaluate(detections, _classes(any_file), ann_file=str(any_file))

    for name, thresholds in (('mAP', np.linspace(0.5, 0.95, 10)), ('mAP_50', [0.5]), ('mAP_75', [0.75])):
        assert ours[f'coco/bbox_{name}'] == pytest.approx(
            average_precision(found, truths, thresholds), abs=1e-6
        )


def _tiny(tmp_path, first_id=1):
    """Two images, non-consecutive category ids, one object of each class in each image."""
    annotations = [
        {'image_id': image, 'category_id': category, 'bbox': [10 * category, 5, 20, 30]}
        for image in (1, 2)
        for category in (9, 4)
    ]
    coco = {
        'images': [{'id': i, 'file_name': f'{i}.jpg', 'width': 200, 'height': 100} for i in (1, 2)],
        'categories': [{'id': 9, 'name': 'nine'}, {'id': 4, 'name': 'four'}],
        'annotations': [{'id': i, **a} for i, a in enumerate(annotations, start=first_id)],
    }
    (tmp_path / 'tiny.json').write_text(json.dumps(coco))
    boxes = np.array([[40, 5, 60, 35], [90, 5, 110, 35]], dtype=np.float32)
    scores, labels = np.array([0.9, 0.8], dtype=np.float32), np.array([0, 1])
    return str(tmp_path / 'tiny.json'), {1: (boxes, scores, labels), 2: (boxes, scores, labels)}


@pytest.mark.parametrize('first_id', [0, 1])
def test_perfect_detections_have_ap_1_whatever_the_ids(tmp_path, first_id):
    ann_file, detections = _tiny(tmp_path, first_id)

    assert _evaluate(detections, ('four', 'nine'), ann_file=ann_file)['coco/bbox_mAP'] == pytest.approx(1)
    swapped = _evaluate(detections, ('nine', 'four'), ann_file=ann_file)
    assert swapped['coco/bbox_mAP'] == 0


def test_no_detections_give_zero_ap_without_an_error(tmp_path, logged):
    ann_file, detections = _tiny(tmp_path)
    none = {i: tuple(part[:0] for part in found) for i, found in detections.items()}

    results = _evaluate(none, ('four', 'nine'), ann_file=ann_file)

    assert results['coco/bbox_mAP'] == results['coco/bbox_mAP_50'] == results['coco/bbox_mAP_s'] == 0
    assert results['coco/bbox_mAP_l'] == -1  # no large object to find
    table = logged[-1].strip().splitlines()
    assert len(table) == 12
    assert all('Average' in row for row in table)


def test_only_tested_images_count(tmp_path, logged):
    ann_file, detections = _tiny(tmp_path)

    results = _evaluate({1: detections[1]}, ('four', 'nine'), ann_file=ann_file)

    assert results['coco/bbox_mAP'] == pytest.approx(1)
    assert any('evaluating 1 of 2 images' in line for line in logged)


def _dataset(ann_file, **changes):
    return CocoDataset(
        ann_file=str(ann_file),
        data_prefix={'img': f'{ann_file.parents[1]}/val2017'},
        test_mode=True,
        **changes,
    )


def _annotations_of(dataset):
    items = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {item['img_id']: Annotations.of(item['instances']) for item in items}


def _evaluate_samples(metainfo, samples):
    metric = CocoMetric(metric_items=[*ROWS, *NUMBERS], classwise=True)
    metric.dataset_meta = metainfo
    metric.process(None, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('num_images', [128, 5])
def test_evaluation_from_samples_equals_evaluation_from_the_file(any_file, num_images):
    """To the last digit: crowds, areas of masks, boxes that stick out of their image."""
    detections = _noisy_detections(any_file, num_images)
    for _, scores, _ in detections.values():  # of equal scores, the order of images decides
        scores[:] = np.round(scores, 1)
    dataset = _dataset(any_file)
    samples = _samples(detections, _annotations_of(dataset))
    samples = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]

    ours = _evaluate_samples(dataset.metainfo, samples)

    items = [*ROWS, *NUMBERS]
    names = dataset.metainfo['classes']
    by_file = _evaluate(detections, names, ann_file=str(any_file), metric_items=items, classwise=True)
    assert ours == by_file
    assert 0.1 < ours['coco/bbox_mAP'] < 0.9


def test_samples_of_concatenated_datasets_are_not_mixed_up(tmp_path):
    """Images of the same id in two files; one of them has nothing detected, so that mixing them up would show."""
    _, detections = _tiny(tmp_path)
    annotations = {1: Annotations.of([{'bbox': [40, 5, 60, 35], 'bbox_label': 0}])}
    found = {1: tuple(part[:1] for part in detections[1])}
    nothing = {1: tuple(part[:0] for part in detections[1])}
    (first,), (second,) = _samples(found, annotations), _samples(nothing, annotations)
    first['img_path'], second['img_path'] = 'a/1.jpg', 'b/1.jpg'

    results = _evaluate_samples({'classes': ('four', 'nine')}, [first, second])

    assert results['coco/bbox_AR@100'] == pytest.approx(0.5)


def test_a_dataset_of_any_format_needs_boxes_and_labels_only(logged):
    annotations = {
        'a': Annotations.of([{'bbox': [40, 5, 60, 35], 'bbox_label': 0}]),
        'b': Annotations.of([]),  # an image without objects
    }
    boxes = np.array([[40, 5, 60, 35]], dtype=np.float32)
    found = {name: (boxes, np.array([0.9], np.float32), np.array([0])) for name in 'ab'}

    results = _evaluate_samples({'classes': ('cat',)}, _samples(found, annotations))
    assert results['coco/bbox_mAP'] == pytest.approx(1)  # of equal scores, image a comes first

    none = _evaluate_samples({'classes': ('cat',)}, _samples({'b': found['b']}, annotations))
    assert set(none.values()) == {-1}
    assert any('contains no objects' in line for line in logged)

    with pytest.raises(InputError, match=r'CocoMetric has no ground truth: .* Set ann_file'):
        _evaluate_samples({'classes': ('cat',)}, _samples(found))


class _Folder(BaseDataset):
    """A dataset of a format of its own: one box in each picture of a folder; ids are file names."""

    METAINFO = {'classes': ('square',)}

    def load_data_list(self):
        instances = [{'bbox': [4, 6, 24, 36], 'bbox_label': 0}]
        return [
            {'img_id': path.name, 'img_path': str(path), 'instances': instances}
            for path in sorted(Path(self.data_root).glob('*.png'))
        ]


def test_another_format_is_evaluated_end_to_end(tmp_path):
    """Two folders with the same file names, joined; every box is found, in the frame of the resized image."""
    for folder in 'ab':
        (tmp_path / folder).mkdir()
        for name in ('1.png', '2.png'):
            cv2.imwrite(str(tmp_path / folder / name), np.zeros((40, 60, 3), np.uint8))
    steps = [
        {'type': 'LoadImageFromFile'},
        {'type': 'Resize', 'scale': (90, 120)},
        {'type': 'LoadAnnotations'},
    ]
    pipeline = [*steps, {'type': 'PackDetInputs', 'meta_keys': ('img_id', 'img_path', 'scale_factor')}]
    parts = [_Folder(data_root=str(tmp_path / folder), test_mode=True, pipeline=pipeline) for folder in 'ab']
    dataset = ConcatDataset(parts)

    samples = [dataset[i]['data_samples'] for i in range(len(dataset))]
    for sample in samples:
        boxes = sample.to_original(sample.gt_instances.bboxes)
        sample.pred_instances = InstanceData(bboxes=boxes, scores=torch.ones(1), labels=torch.zeros(1).long())
    found = [sample.to_dict() for sample in samples]
    results = _evaluate_samples(dataset.metainfo, found)
    assert (results['coco/bbox_mAP'], results['coco/bbox_AR@1']) == (pytest.approx(1), pytest.approx(1))
    found[3]['pred_instances']['bboxes'] += 50
    assert _evaluate_samples(dataset.metainfo, found)['coco/bbox_AR@1'] == pytest.approx(0.75)


def test_a_file_is_read_once(tmp_path):
    ann_file, detections = _tiny(tmp_path)
    metric = CocoMetric(ann_file=ann_file)
    metric.dataset_meta = {'classes': ('four', 'nine')}
    os.remove(ann_file)
    for _ in range(2):
        metric.process(None, _samples(detections))
        assert metric.evaluate(2)['coco/bbox_mAP'] == pytest.approx(1)


def test_per_class_ap_averages_to_the_whole(real_file, logged):
    results = _evaluate(_noisy_detections(real_file), ann_file=str(real_file), classwise=True, prefix='own')

    per_class = {k: v for k, v in results.items() if k.endswith('_precision')}
    assert len(per_class) == 80
    assert 'own/traffic light_precision' in per_class
    measured = [v for v in per_class.values() if v >= 0]
    assert np.mean(measured) == pytest.approx(results['own/bbox_mAP'])
    table = logged[-1].strip().splitlines()
    assert table[0].split() == ['class', 'AP', 'AP50', 'AP75', 'APs', 'APm', 'APl']
    columns = np.array(
        [
            [np.nan if v == '-' else float(v) for v in row[len('baseball glove') :].split()]
            for row in table[1:]
        ]
    )
    expected = [results[f'own/bbox_{name}'] for name in ROWS]
    np.testing.assert_allclose(np.nanmean(columns, axis=0), expected, atol=5e-4)


def test_thresholds_and_limits_can_be_chosen(real_file):
    detections = _noisy_detections(real_file)

    usual = _evaluate(detections, ann_file=str(real_file))
    strict = _evaluate(detections, ann_file=str(real_file), iou_thrs=[0.75])
    mmdet = _evaluate(
        detections, ann_file=str(real_file), proposal_nums=(100, 300, 1000), metric_items=['mAP', 'AR@1000']
    )

    assert strict['coco/bbox_mAP'] == pytest.approx(usual['coco/bbox_mAP_75'])
    assert strict['coco/bbox_mAP_50'] == -1
    assert mmdet['coco/bbox_mAP'] == pytest.approx(usual['coco/bbox_mAP'])
    assert list(mmdet) == ['coco/bbox_mAP', 'coco/bbox_AR@1000']


def test_predictions_are_written_in_cocos_format(tmp_path):
    ann_file, detections = _tiny(tmp_path)
    prefix = tmp_path / 'new' / 'folder' / 'run'

    results = _evaluate(
        detections, ('four', 'nine'), ann_file=ann_file, format_only=True, outfile_prefix=str(prefix)
    )

    assert results == {}
    written = json.loads((tmp_path / 'new/folder/run.bbox.json').read_text())
    assert os.listdir(tmp_path / 'new/folder') == ['run.bbox.json']
    assert len(written) == 4
    assert written[1]['image_id'] == 1
    assert written[1]['category_id'] == 9
    assert written[1]['bbox'] == [90, 5, 20, 30]
    assert written[1]['score'] == pytest.approx(0.8)


def test_wrong_arguments_raise(tmp_path):
    ann_file, detections = _tiny(tmp_path)

    for arguments, sentence in (
        ({'metric': 'segm'}, "metric='segm'"),
        ({'format_only': True}, 'needs outfile_prefix'),
        ({'proposal_nums': (1, 10)}, r'proposal_nums=\(1, 10\)'),
        ({'proposal_nums': (1, 10, 50)}, 'one of them 100'),
        ({'metric_items': ['mAP_60']}, 'mAP_60'),
        ({'ann_file': str(tmp_path / 'none.json')}, r'none\.json does not exist'),
    ):
        with pytest.raises(InputError, match=sentence):
            CocoMetric(**arguments)
    with pytest.raises(InputError, match=r"no category named 'five'; it has 'nine', 'four'"):
        _evaluate(detections, ('four', 'five'), ann_file=ann_file)
    with pytest.raises(InputError, match=r'label 1, but the dataset has 1 classes'):
        _evaluate(detections, ('four',), ann_file=ann_file)
    with pytest.raises(InputError, match=r'image id 3 was tested, but is not in .*tiny\.json'):
        _evaluate({3: detections[1]}, ('four', 'nine'), ann_file=ann_file)


def _evaluate_share(rank, world_size, ann_file, detections, folder, from_samples):
    """One of the processes of the test below: the images rank, rank + 2, ..., as mmengine's sampler deals them."""
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=world_size)
    ids = list(detections)
    ids += ids[: -len(ids) % world_size]  # the sampler repeats some, so that all have as many
    dataset = _dataset(ann_file)
    metric = CocoMetric(ann_file=None if from_samples else str(ann_file))
    metric.dataset_meta = dataset.metainfo
    mine = {i: detections[i] for i in ids[rank::world_size]}
    metric.process(None, _samples(mine, _annotations_of(dataset) if from_samples else None))
    results = metric.evaluate(len(detections))
    with open(f'{folder}/{rank}.json', 'w') as file:
        json.dump(results, file)
    dist.destroy_process_group()


@pytest.mark.parametrize('library', ['faster-coco-eval'], indirect=True)
@pytest.mark.parametrize('from_samples', [False, True])
def test_two_processes_give_the_same_result_as_one(any_file, tmp_path, from_samples):
    detections = _noisy_detections(any_file, num_images=31)
    alone = _evaluate(detections, _classes(any_file), ann_file=str(any_file))

    share = (2, any_file, detections, str(tmp_path), from_samples)
    torch.multiprocessing.spawn(_evaluate_share, share, nprocs=2)

    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == alone
