"""Pascal VOC and YOLO as datasets of their own: the same items, and the same AP, as the same data in COCO's format."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr.datasets import CocoDataset, XMLDataset, YOLODataset
from ddetr.datasets.formats import convert_dataset, find_dataset
from ddetr.datasets.transforms import LoadImageFromFile
from ddetr.engine.config import check_config, load_config
from ddetr.evaluation import CocoMetric
from ddetr.registry import DATASETS
from ddetr.structures import Annotations
from ddetr.utils.errors import ConfigError, InputError

PLACE = {'voc': XMLDataset, 'yolo': YOLODataset, 'coco': CocoDataset}


@pytest.fixture
def three(tmp_path) -> dict[str, Path]:
    """The same random data in three formats; coordinates to hundredths of a pixel, a box reaching out of its image."""
    draw, images, annotations = random.Random(0), [], []
    (tmp_path / 'coco/train').mkdir(parents=True)
    for i in range(12):
        width, height = draw.randint(60, 300), draw.randint(60, 300)
        Image.new('RGB', (width, height)).save(tmp_path / f'coco/train/{i:02}.png')
        images.append({'id': 5 * i, 'file_name': f'{i:02}.png', 'width': width, 'height': height})
        for _ in range(i % 5):
            x, y = (round(draw.uniform(-2, side * 0.7), 2) for side in (width, height))
            w, h = (round(draw.uniform(2, side * 0.4), 2) for side in (width, height))
            annotations.append({'image_id': 5 * i, 'category_id': draw.choice([9, 4]), 'bbox': [x, y, w, h]})
    for number, annotation in enumerate(annotations, start=1):
        annotation |= {'id': number, 'area': annotation['bbox'][2] * annotation['bbox'][3], 'iscrowd': 0}
    content = {'images': images, 'annotations': annotations}
    content['categories'] = [{'id': 9, 'name': 'cat'}, {'id': 4, 'name': 'dog'}]
    (tmp_path / 'coco/train.json').write_text(json.dumps(content))
    for format in ('voc', 'yolo'):
        convert_dataset(tmp_path / 'coco', format, tmp_path / format)
    return {format: tmp_path / format for format in PLACE}


def _build(folder, **more):
    return DATASETS.build({**find_dataset(folder).splits['train'].dataset, **more})


def _items(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.mark.parametrize('test_mode', [False, True])
def test_items_equal_those_of_the_same_data_in_coco_format(three, test_mode):
    datasets = {format: _build(folder, test_mode=test_mode) for format, folder in three.items()}
    for format, dataset in datasets.items():
        assert type(dataset) is PLACE[format]
        assert dataset.metainfo['classes'] == ('dog', 'cat')
    coco = _items(datasets['coco'])
    assert sum(len(item['instances']) for item in coco) > 20
    for format in ('voc', 'yolo'):
        for item, other in zip(_items(datasets[format]), coco, strict=True):
            assert (item['height'], item['width']) == (other['height'], other['width'])
            assert item['img_id'] == Path(other['img_path']).stem
            for ours, theirs in zip(item['instances'], other['instances'], strict=True):
                assert ours.keys() == theirs.keys()
                assert np.array_equal(
                    np.float32(ours['bbox']), np.float32(theirs['bbox'])
                )  # as they are trained on
                assert ours['bbox_label'] == theirs['bbox_label']
                if test_mode:
                    assert (ours['bbox_xywh'], ours['area']) == (theirs['bbox_xywh'], theirs['area'])


def test_ap_equals_pycocotools_on_the_coco_file_exactly(three):
    rng, detections = np.random.default_rng(0), {}
    for item in _items(_build(three['coco'], test_mode=True)):
        truth = np.array([i['bbox'] for i in item['instances']]).reshape(-1, 4)
        boxes = np.concatenate([truth + rng.normal(0, 3, truth.shape), truth[:1] + 40]).astype(np.float32)
        labels = np.array([i['bbox_label'] for i in item['instances']] + [0] * len(truth[:1]), dtype=int)
        labels[rng.random(len(labels)) < 0.1] ^= 1
        detections[Path(item['img_path']).name] = boxes, rng.random(len(boxes)).astype(np.float32), labels

    truth = COCO(str(three['coco'] / 'train.json'))
    rows = []
    for image in truth.dataset['images']:
        for (x1, y1, x2, y2), score, label in zip(*detections[image['file_name']], strict=True):
            box = [float(v) for v in (x1, y1, x2 - x1, y2 - y1)]
            rows.append(
                {'image_id': image['id'], 'category_id': (4, 9)[label], 'bbox': box, 'score': float(score)}
            )
    expected = COCOeval(truth, truth.loadRes(rows), 'bbox')
    expected.evaluate()
    expected.accumulate()
    expected.summarize()
    assert 0.1 < expected.stats[0] < 0.9

    for folder in three.values():
        dataset, metric = _build(folder, test_mode=True), CocoMetric()
        metric.dataset_meta = dataset.metainfo
        for item in _items(dataset):
            boxes, scores, labels = map(torch.from_numpy, detections[Path(item['img_path']).name])
            found = {'bboxes': boxes, 'scores': scores, 'labels': labels}
            annotations = Annotations.of(item['instances'])
            metric.process({}, [{**item, 'pred_instances': found, 'annotations': annotations}])
        assert list(metric.evaluate(len(dataset)).values()) == expected.stats[:6].tolist()


def test_bccd_loads_as_it_is(bccd_root, warnings_logged):
    counts = {}
    for split in ('train', 'val', 'test'):
        dataset = XMLDataset(
            f'ImageSets/Main/{split}.txt', data_root=str(bccd_root), filter_cfg={'filter_empty_gt': True}
        )
        assert dataset.metainfo['classes'] == ('Platelets', 'RBC', 'WBC')
        counts[split] = len(dataset), sum(len(item['instances']) for item in _items(dataset))
    assert {split: number for split, (number, _) in counts.items()} == {'train': 205, 'val': 87, 'test': 72}
    assert sum(boxes for _, boxes in counts.values()) == 4155 + 372 + 361 - 2
    assert [line.split('skipped; ')[1] for line in warnings_logged] == [
        "the first: Annotations/BloodImage_00343.xml, object 4: ['181', '329', '181', '329']",
        "the first: Annotations/BloodImage_00338.xml, object 13: ['504', '337', '504', '337']",
    ]


class Voc:
    """One folder of VOC's own layout, with images of 40 x 20 pixels."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name, *objects, size='<size><width>40</width><height>20</height></size>', exif=None):
        for folder in ('V/Annotations', 'V/JPEGImages'):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        text = ''.join(
            f'<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>'
            f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
            for kind, difficult, (x1, y1, x2, y2) in objects
        )
        (self.root / f'V/Annotations/{name}.xml').write_text(f'<annotation>{size}{text}</annotation>')
        Image.new('RGB', (40, 20)).save(self.root / f'V/JPEGImages/{name}.jpg', exif=exif or Image.Exif())

    def build(self, **more):
        return XMLDataset(data_root=str(self.root), data_prefix={'sub_data_root': 'V/'}, **more)


@pytest.fixture
def voc(tmp_path) -> Voc:
    return Voc(tmp_path)


def test_mmdetection_keys_are_supported(voc):
    voc.add('a', ('dog', 0, (1, 1, 41, 21)), ('cat', 1, (5, 5, 15, 15)), ('dog', 0, (1, 1, 4, 20)))
    voc.add('b')
    (voc.root / 'V/list.txt').write_text('a\nb\n')
    config = {'ann_file': 'V/list.txt', 'filter_cfg': {'filter_empty_gt': True, 'bbox_min_size': 5}}
    (item,) = _items(voc.build(**config))
    assert item['img_id'] == 'a'
    assert item['img_path'] == str(voc.root / 'V/JPEGImages/a.jpg')
    assert [(i['bbox'], i['bbox_label'], i['ignore_flag']) for i in item['instances']] == [
        ([0, 0, 40, 20], 1, 0),
        ([4, 4, 14, 14], 0, 1),  # difficult
        ([0, 0, 3, 19], 1, 1),  # narrower than bbox_min_size
    ]
    (voc.root / 'V/JPEGImages').rename(voc.root / 'V/pictures')
    (voc.root / 'V/Annotations').rename(voc.root / 'V/xml')
    folders = {'img_subdir': 'pictures', 'ann_subdir': 'xml'}
    assert len(voc.build(test_mode=True, **folders)) == 2
    named = voc.build(metainfo={'classes': ('dog',)}, **folders)
    assert [i['bbox_label'] for i in named.get_data_info(0)['instances']] == [0, 0]
    assert named.get_cat_ids(0) == [0, 0]


def test_sizes_come_from_the_image_where_the_file_is_wrong(voc, warnings_logged):
    exif = Image.Exif()
    exif[0x0112] = 6
    wrong = '<size><width>0</width><height>0</height></size>'
    for name, size in (('none', ''), ('zero', wrong), ('turned', '')):
        voc.add(name, ('dog', 0, (1, 1, 9, 9)), size=size, exif=exif if name == 'turned' else None)
    voc.add('unturned', ('dog', 0, (1, 1, 40, 20)), exif=exif)  # annotated on the unrotated pixels
    items = {item['img_id']: item for item in _items(voc.build())}
    sizes = {name: (item['width'], item['height']) for name, item in items.items()}
    assert sizes == {'none': (40, 20), 'zero': (40, 20), 'turned': (20, 40), 'unturned': (40, 20)}
    for item in items.values():
        assert LoadImageFromFile()(item)['img_shape'] == (item['height'], item['width'])
    assert "1 files give a wrong image size, so the image's own is used; the first" in warnings_logged[0]
    assert 'Annotations/zero.xml: 0 x 0, but the image is 40 x 20' in warnings_logged[0]


def test_voc_faults_give_one_message_each(voc, warnings_logged):
    voc.add('a', ('dog', 0, (1, 1, 9, 9)), ('dog', 0, ('x', 1, 9, 9)))
    (voc.root / 'V/Annotations/b.xml').write_text('<annotation><obj')
    (item,) = _items(voc.build(metainfo={'classes': ('dog', 'cow')}))
    assert len(item['instances']) == 1
    unreadable, absent, dropped = warnings_logged
    assert (
        '1 records cannot be read and are skipped; the first: Annotations/b.xml is not valid XML'
        in unreadable
    )
    assert "classes have no object in Annotations: 'cow'" in absent
    assert '1 boxes that are empty or outside their image are skipped; the first: Anno' in dropped

    with pytest.raises(InputError, match=r"no object of the classes 'cow'; it has 'dog'"):
        voc.build(metainfo={'classes': ('cow',)})
    for changes, sentence in (
        ({'ann_file': 'V'}, r'list of images .*V is a folder'),
        ({'ann_file': 'no.txt'}, r'list of images .*no\.txt does not exist'),
        ({'ann_subdir': 'no'}, r'folder of annotations .*V/no does not exist'),
        (
            {'img_subdir': 'no'},
            r'1 of the 1 images listed in .*Annotations do not exist; the first is .*no/a\.jpg',
        ),
        ({'backend_args': {'backend': 'petrel'}}, r'XMLDataset supports only the local disk'),
    ):
        with pytest.raises(InputError, match=sentence):
            voc.build(**changes)
    (voc.root / 'V/JPEGImages/a.jpg').write_text('broken')
    with pytest.raises(InputError, match=r'1 images cannot be read; the first is .*a\.jpg\. Repair it'):
        voc.build()


def test_yolo_faults_give_one_message_each(three, warnings_logged):
    path = next((three['yolo'] / 'labels/train').glob('*5.txt'))
    path.write_text('1 .5 .5 .1 .1\nnonsense\n')
    assert len(_build(three['yolo'])) == 12
    assert (
        'data.yaml: 1 records cannot be read and are skipped; the first: labels/train/' in warnings_logged[0]
    )
    path.write_text('2 .5 .5 .1 .1\n')
    with pytest.raises(
        InputError, match=r'05\.txt: line 1 has class 2, which data\.yaml does not define: it has 0, 1'
    ):
        _build(three['yolo'])
    for change, sentence in (
        ({'ann_file': 'no.yaml'}, r'no\.yaml does not exist'),
        ({'split': 'test'}, r"data\.yaml has no split 'test': it has the keys 'train', 'names'"),
        ({'data_prefix': {'img': 'no'}}, r'folder of images .*no does not exist'),
        ({'metainfo': {'classes': ('cow',)}}, r"no category named 'cow'; it has 'dog', 'cat'"),
    ):
        path.write_text('')
        with pytest.raises(InputError, match=sentence):
            _build(three['yolo'], **change)


def test_a_folder_of_images_and_a_file_of_names_are_enough_for_yolo(three):
    (three['yolo'] / 'names.txt').write_text('b\na\n\n')
    dataset = YOLODataset('names.txt', data_root=str(three['yolo']), data_prefix={'img': 'images/train'})
    assert dataset.metainfo['classes'] == ('b', 'a')
    assert len(dataset) == 12


def _coco(root, boxes, size=(100, 80)):
    images = [{'id': 1, 'file_name': 'a.jpg', 'width': size[0], 'height': size[1]}]
    content = {'images': images, 'categories': [{'id': 1, 'name': 'x'}]}
    content['annotations'] = [
        {'id': i, 'image_id': 1, 'category_id': 1, 'bbox': b} for i, b in enumerate(boxes)
    ]
    (root / 'a.json').write_text(json.dumps(content))
    Image.new('RGB', size).save(root / 'a.jpg')
    return CocoDataset('a.json', data_root=str(root))


def test_coco_boxes_in_other_units_are_an_error(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.uniform(0, 50, (20, 2))
    sides = rng.uniform(10, 30, (20, 2))
    right = np.concatenate([first, sides], 1).round(2)
    assert len(_coco(tmp_path, right.tolist())) == 1
    as_corners = np.concatenate([first, first + sides], 1)
    with pytest.raises(
        InputError, match=r'a\.json: \d+ of 20 boxes extend beyond .* would fit as corners \(xyxy\)'
    ):
        _coco(tmp_path, as_corners.tolist())
    with pytest.raises(
        InputError, match=r'a\.json: all 20 boxes lie within one pixel, so they seem to be normalised'
    ):
        _coco(tmp_path, (right / [100, 80, 100, 80]).tolist())
    # objects that fill the image, or a few that extend beyond it, are not reported
    assert len(_coco(tmp_path, [[0, 0, 100, 80]] * 5)) == 1
    assert len(_coco(tmp_path, [*[[5, 5, 60, 60]] * 9, [5, 5, 99, 60]])) == 1
    assert len(_coco(tmp_path, [*right.tolist(), [60, 50, 90, 70], [70, 50, 90, 70]])) == 1


def test_yolo_boxes_in_pixels_are_an_error(three):
    for path in (three['yolo'] / 'labels/train').glob('*.txt'):
        path.write_text('1 30 20 10 12\n')
    with pytest.raises(
        InputError, match=r'data\.yaml: 12 of 12 boxes have numbers above 1, so they seem to be in pixels'
    ):
        _build(three['yolo'])


def test_folder_as_annotation_file_raises(tmp_path):
    with pytest.raises(
        InputError, match=r'annotation file .* is a folder: name the JSON file in it with ann_file'
    ):
        CocoDataset(str(tmp_path))


def test_misspelt_key_raises_before_building(repo_root):
    loader = {'dataset': {'type': 'VOCDataset', 'img_subdirr': 'x', '_delete_': True}}
    cfg = load_config(repo_root / 'tests/configs/tiny_shapes.py', {'train_dataloader': loader})
    with pytest.raises(
        ConfigError, match=r'img_subdirr: XMLDataset has no such key; did you mean img_subdir'
    ):
        check_config(cfg)
