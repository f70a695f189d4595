import json

import pytest

from ddetr.datasets import COCO_CLASSES, CocoDataset
from ddetr.utils.errors import InputError


def _items(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_real_coco_is_read_as_its_file_says(coco_root, split):
    raw = json.loads((coco_root / f'annotations/instances_{split}.json').read_text())
    names = {category['id']: category['name'] for category in raw['categories']}

    dataset = CocoDataset(
        data_root=str(coco_root), ann_file=f'annotations/instances_{split}.json', data_prefix={'img': split}
    )

    assert dataset.metainfo['classes'] == COCO_CLASSES
    assert [item['img_id'] for item in _items(dataset)] == [image['id'] for image in raw['images']]
    found = 0
    for item in _items(dataset):
        assert item['img_path'] == str(coco_root / split / f'{item["img_id"]:012d}.jpg')
        expected = [a for a in raw['annotations'] if a['image_id'] == item['img_id']]
        assert len(expected) == len(item['instances'])
        for annotation, instance in zip(expected, item['instances'], strict=True):
            x, y, w, h = annotation['bbox']
            assert instance['bbox'] == pytest.approx([x, y, x + w, y + h], abs=0.02)
            assert COCO_CLASSES[instance['bbox_label']] == names[annotation['category_id']]
            assert instance['ignore_flag'] == annotation['iscrowd']
            found += 1
    assert found == {'train2017': 935, 'val2017': 903}[split]


def test_images_without_boxes_stay_unless_filtered(coco_root):
    config = {
        'data_root': str(coco_root),
        'ann_file': 'annotations/instances_train2017.json',
        'data_prefix': {'img': 'train2017'},
    }

    def count(**changes):
        return len(CocoDataset(**config, **changes))

    assert count() == 128
    assert count(filter_cfg={'filter_empty_gt': False, 'min_size': 32}) == 128
    assert count(filter_cfg={'filter_empty_gt': True}) == 126
    assert count(filter_cfg={'filter_empty_gt': True}, test_mode=True) == 128
    assert 0 < count(filter_cfg={'min_size': 427}) < 128


def test_classes_come_from_the_file_by_id(tiny_coco):
    tiny_coco.write()
    dataset = CocoDataset(**tiny_coco.config())

    assert dataset.metainfo['classes'] == ('cat', 'dog')
    first, empty, crowd = _items(dataset)
    assert [i['bbox_label'] for i in first['instances']] == [1, 0]
    assert first['instances'][1]['bbox'] == [90, 70, 100, 80]  # clipped to the image
    assert empty['instances'] == []
    assert [i['ignore_flag'] for i in crowd['instances']] == [1]
    assert dataset.get_cat_ids(0) == [1, 0]


def test_selected_classes_set_the_labels_and_drop_the_others(tiny_coco):
    tiny_coco.write()

    both = CocoDataset(**tiny_coco.config(metainfo={'classes': ('dog', 'cat')}))
    assert [i['bbox_label'] for i in both.get_data_info(0)['instances']] == [0, 1]
    only = CocoDataset(
        **tiny_coco.config(metainfo={'classes': ['cat']}, filter_cfg={'filter_empty_gt': True})
    )
    assert [len(item['instances']) for item in _items(only)] == [1, 1]


def test_test_sets_have_the_files_boxes_and_category_ids(tiny_coco):
    outside = {
        'id': 50,
        'image_id': 10,
        'category_id': 7,
        'bbox': [-9, 5, 0, 10.1],
        'area': 1.5,
        'iscrowd': 0,
    }
    tiny_coco.data['annotations'].append(outside)
    tiny_coco.write()

    dataset = CocoDataset(**tiny_coco.config(test_mode=True))
    first, _, crowd = _items(dataset)
    assert dataset.metainfo['category_ids'] == [3, 7]
    assert [i['bbox_xywh'] for i in first['instances']] == [
        [10, 20, 30, 40],
        [90, 70, 30, 40],
        [-9, 5, 0, 10.1],
    ]
    assert [i['bbox'] for i in first['instances']][1:] == [[90, 70, 120, 110], [-9, 5, -9, 15.1]]
    assert [i['area'] for i in first['instances'] + crowd['instances']] == [900, 900, 1.5, 99]

    training = CocoDataset(**tiny_coco.config())
    assert 'category_ids' not in training.metainfo
    assert [i['bbox'] for i in training.get_data_info(0)['instances']] == [
        [10, 20, 40, 60],
        [90, 70, 100, 80],
    ]


def test_filtered_images_are_counted_in_a_warning(tiny_coco, warnings_logged):
    tiny_coco.data['images'][2]['width'] = 6  # wrong: the image is 60 wide
    tiny_coco.write()
    dataset = CocoDataset(**tiny_coco.config(filter_cfg={'filter_empty_gt': True, 'min_size': 32}))

    assert [item['img_id'] for item in _items(dataset)] == [10]
    by_size, empty = [line for line in warnings_logged if 'skipped (' in line]
    assert '1 of 3 images are skipped (min_size=32); the first is' in by_size
    assert 'c.jpg, 6 x 90 pixels according to the file' in by_size
    assert '1 of 3 images are skipped (filter_empty_gt=True: no valid box)' in empty
    assert 'b.jpg' in empty


def test_a_test_list_without_annotations_can_be_tested_on(tiny_coco):
    del tiny_coco.data['annotations']
    tiny_coco.write()

    assert len(CocoDataset(**tiny_coco.config(test_mode=True))) == 3
    with pytest.raises(InputError, match=r"ann\.json has no list 'annotations'"):
        CocoDataset(**tiny_coco.config())


def test_bad_boxes_are_dropped_with_one_warning(tiny_coco, warnings_logged):
    def add(number, bbox):
        tiny_coco.data['annotations'].append(
            {'id': number, 'image_id': 11, 'category_id': 3, 'bbox': bbox, 'area': 1, 'iscrowd': 0}
        )

    add(50, [5, 5, 0, 10])
    add(51, [5, 5, 10, -3])
    add(52, [100, 5, 10, 10])  # begins where the image ends
    add(53, [-20, 5, 20, 10])
    add(54, [99.5, 5, 10, 10])  # half a pixel inside
    tiny_coco.write()

    dataset = CocoDataset(**tiny_coco.config())

    assert [i['bbox'] for i in dataset.get_data_info(1)['instances']] == [[99.5, 5, 100, 15]]
    assert len(warnings_logged) == 1
    assert '4 boxes' in warnings_logged[0]
    assert 'annotation id 50 in image id 11' in warnings_logged[0]


def test_absent_iscrowd_and_annotation_id_are_tolerated(tiny_coco):
    for annotation in tiny_coco.data['annotations']:
        del annotation['iscrowd'], annotation['id'], annotation['area']
    tiny_coco.write()

    assert [i['ignore_flag'] for i in _items(CocoDataset(**tiny_coco.config()))[2]['instances']] == [0]


def _set(key, index, field, value):
    def change(data):
        data[key][index][field] = value

    return change


def _delete(key, index, field):
    def change(data):
        del data[key][index][field]

    return change


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (_set('annotations', 1, 'category_id', 99), r'annotations\[1\] \(id 2\) has category_id 99'),
        (_set('annotations', 1, 'image_id', 99), r'annotations\[1\] \(id 2\) has image_id 99'),
        (
            _set('annotations', 0, 'bbox', [1, 2, 3]),
            r'annotations\[0\] \(id 1\) has bbox \[1, 2, 3\], not four',
        ),
        (_set('annotations', 0, 'bbox', [1, 2, 3, None]), r'has bbox \[1, 2, 3, None\]'),
        (_set('annotations', 0, 'bbox', [1, 2, 3, float('nan')]), r'has bbox \[1, 2, 3, nan\]'),
        (_set('annotations', 1, 'id', 1), r"id 1 occurs twice in 'annotations'"),
        (_set('images', 1, 'id', 10), r"id 10 occurs twice in 'images'"),
        (_set('images', 1, 'width', 0), r'images\[1\] \(id 11\) has width 0'),
        (_set('categories', 1, 'id', 7), r"id 7 occurs twice in 'categories'"),
        (_set('categories', 1, 'name', 'dog'), r"name 'dog' occurs twice in 'categories'"),
        (_delete('annotations', 2, 'bbox'), r"annotations\[2\] has no 'bbox'"),
        (_delete('images', 0, 'file_name'), r"images\[0\] has no 'file_name'"),
        (lambda data: data.pop('categories'), r"has no list 'categories'"),
        (lambda data: data['images'].clear() or data['annotations'].clear(), 'lists no images'),
    ],
)
def test_malformed_entry_raises(tiny_coco, change, sentence):
    change(tiny_coco.data)
    tiny_coco.write()

    with pytest.raises(InputError, match=rf'annotation file .*ann\.json.*{sentence}') as raised:
        CocoDataset(**tiny_coco.config())
    assert '\n' not in str(raised.value)


def test_unreadable_files_raise(tiny_coco):
    with pytest.raises(InputError, match=r'ann\.json does not exist: check data_root and ann_file'):
        CocoDataset(**tiny_coco.config())
    for text in ('{"images": [{"id": 1, "file', '', '\x00'):
        tiny_coco.write(text)
        with pytest.raises(InputError, match=r'ann\.json is not valid JSON'):
            CocoDataset(**tiny_coco.config())
    tiny_coco.write('[1, 2]')
    with pytest.raises(InputError, match=r'ann\.json holds a list'):
        CocoDataset(**tiny_coco.config())


def test_missing_images_are_counted_before_training(tiny_coco):
    tiny_coco.write()
    (tiny_coco.root / 'images' / 'b.jpg').unlink()
    (tiny_coco.root / 'images' / 'c.jpg').unlink()

    with pytest.raises(InputError, match=r'2 of the 3 images .* first is .*images/b\.jpg: check data_root'):
        CocoDataset(**tiny_coco.config())
    with pytest.raises(InputError, match=r'3 of the 3 images'):
        CocoDataset(**tiny_coco.config(data_prefix={'img': 'elsewhere/'}))


def test_images_in_subfolders_are_found(tiny_coco):
    tiny_coco.write()
    (tiny_coco.root / 'images' / 'more').mkdir()
    (tiny_coco.root / 'images' / 'c.jpg').rename(tiny_coco.root / 'images' / 'more' / 'c.jpg')
    tiny_coco.data['images'][2]['file_name'] = 'more/c.jpg'
    (tiny_coco.root / 'ann.json').write_text(json.dumps(tiny_coco.data))

    assert len(CocoDataset(**tiny_coco.config())) == 3


def test_unknown_classes_and_empty_selections_raise(tiny_coco):
    tiny_coco.write()

    with pytest.raises(InputError, match=r"no category named 'cow'; it has 'dog', 'cat'"):
        CocoDataset(**tiny_coco.config(metainfo={'classes': ('cat', 'cow')}))
    with pytest.raises(InputError, match=r"filter_cfg=\{'min_size': 500\} removes all 3 images"):
        CocoDataset(**tiny_coco.config(filter_cfg={'min_size': 500}))
