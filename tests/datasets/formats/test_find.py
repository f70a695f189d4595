"""The layouts that people's datasets have, each found from its folder alone and read as it is."""

import json
from pathlib import Path

import pytest
from PIL import Image

from ddetr.datasets.formats import data_options, find_dataset
from ddetr.registry import DATASETS
from ddetr.utils.errors import InputError


class Folder:
    """A dataset's folder to fill: images of 40 x 20 pixels, with one object `dog` at (10, 5) to (30, 15)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def image(self, *names: str) -> 'Folder':
        for name in names:
            Image.new('RGB', (40, 20)).save(self._path(name))
        return self

    def text(self, name: str, text: str) -> 'Folder':
        self._path(name).write_text(text)
        return self

    def coco(self, name: str, file_name: str, **more) -> 'Folder':
        content = {
            'images': [{'id': 1, 'file_name': file_name, 'width': 40, 'height': 20}],
            'annotations': [{'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [10, 5, 20, 10]}],
            'categories': [{'id': 1, 'name': 'dog'}],
        }
        return self.text(name, json.dumps({**content, **more}))

    def xml(self, *names: str, object_name: str = 'dog') -> 'Folder':
        box = '<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>31</xmax><ymax>16</ymax></bndbox>'
        for name in names:
            self.text(
                name,
                f'<annotation><filename>{Path(name).stem}.jpg</filename><size><width>40</width><height>20</height>'
                f'</size><object><name>{object_name}</name>{box}</object></annotation>',
            )
        return self

    def yolo(self, *names: str) -> 'Folder':
        for name in names:
            self.text(name, '0 0.5 0.5 0.5 0.5\n')
        return self


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / 'data')


def coco_2017(f):
    f.image('train2017/a.jpg', 'val2017/b.jpg')
    f.coco('annotations/instances_train2017.json', 'a.jpg').coco(
        'annotations/instances_val2017.json', 'b.jpg'
    )
    f.coco('annotations/person_keypoints_val2017.json', 'b.jpg').text(
        'annotations/captions_val2017.json', '{}'
    )


def coco_same_names_in_both_splits(f):
    f.image('train/1.jpg', 'val/1.jpg').coco('train.json', '1.jpg').coco('val.json', '1.jpg')


def coco_roboflow(f):
    for split in ('train', 'valid', 'test'):
        f.image(f'{split}/a_{split}.jpg').coco(f'{split}/_annotations.coco.json', f'a_{split}.jpg')
    f.text('README.roboflow.txt', 'words')


def coco_label_studio(f):
    f.image('images/a.jpg').coco('result.json', 'images/a.jpg')


def coco_beside_images(f):
    f.image('images/a.jpg').coco('labels.json', 'a.jpg')


def voc_devkit(f):
    base = 'VOCdevkit/VOC2007/'
    f.image(*(f'{base}JPEGImages/{n}.jpg' for n in 'ab')).xml(*(f'{base}Annotations/{n}.xml' for n in 'ab'))
    f.text(f'{base}ImageSets/Main/train.txt', 'a\n').text(f'{base}ImageSets/Main/val.txt', 'b\n')
    f.text(f'{base}ImageSets/Main/dog_train.txt', 'a  1\n')


def voc_roboflow(f):
    for split in ('train', 'valid'):
        f.image(f'{split}/a_{split}.jpg').xml(f'{split}/a_{split}.xml')


def voc_labelimg(f):
    f.image('a.jpg', 'b.png').xml('a.xml', 'b.xml')


def voc_kaggle(f):
    f.image('images/a.png').xml('annotations/a.xml')


def voc_split_folders(f):
    f.image('images/train/a.jpg', 'images/val/b.jpg').xml('annotations/train/a.xml', 'annotations/val/b.xml')


def yolo_ultralytics(f):
    f.image('images/train/a.jpg', 'images/val/b.jpg').yolo('labels/train/a.txt', 'labels/val/b.txt')
    f.text(
        'data.yaml', 'path: /content/somewhere/data\ntrain: images/train\nval: images/val\nnames:\n  0: dog\n'
    )


def yolo_lists(f):
    f.image('images/a.jpg', 'images/b.jpg').yolo('labels/a.txt', 'labels/b.txt')
    f.text('train.txt', './images/a.jpg\n').text('val.txt', 'images/b.jpg\n')
    f.text('my.yaml', 'train: [train.txt]\nval: val.txt\nnc: 1\nnames: [dog]\n')


def yolo_roboflow(f):
    for split in ('train', 'valid'):
        f.image(f'{split}/images/a.jpg').yolo(f'{split}/labels/a.txt')
    f.text(
        'data.yaml',
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['dog']\n",
    )


def yolo_without_yaml(f):
    f.image('images/train/a.jpg', 'images/val/b.jpg').yolo('labels/train/a.txt', 'labels/val/b.txt')
    f.text('classes.txt', 'dog\n')


def yolo_label_studio(f):
    f.image('images/a.jpg').yolo('labels/a.txt').text('classes.txt', 'dog\n')
    f.text('notes.json', '{"categories": [{"id": 0, "name": "dog"}], "info": {}}')


def yolo_labelimg(f):
    f.image('a.jpg', 'b.jpg').yolo('a.txt').text('classes.txt', 'dog\n')


@pytest.mark.parametrize(
    ('layout', 'splits'),
    [
        (coco_2017, 'train val'),
        (coco_same_names_in_both_splits, 'train val'),
        (coco_roboflow, 'train val test'),
        (coco_label_studio, 'train'),
        (coco_beside_images, 'train'),
        (voc_devkit, 'train val'),
        (voc_roboflow, 'train val'),
        (voc_labelimg, 'train'),
        (voc_kaggle, 'train'),
        (voc_split_folders, 'train val'),
        (yolo_ultralytics, 'train val'),
        (yolo_lists, 'train val'),
        (yolo_roboflow, 'train val'),
        (yolo_without_yaml, 'train val'),
        (yolo_label_studio, 'train'),
        (yolo_labelimg, 'train'),
    ],
)
def test_a_layout_is_found_and_read(folder, layout, splits):
    layout(folder)
    found = find_dataset(folder.root)
    assert found.format == layout.__name__.split('_')[0]
    assert list(found.splits) == splits.split()
    paths = []
    for name, split in found.splits.items():
        written = split.read()
        assert written.name == name
        assert [category.name for category in written.categories] == ['dog']
        assert written.unreadable == ()
        dataset = DATASETS.build(split.dataset)
        assert tuple(dataset.metainfo['classes']) == ('dog',)
        items = [dataset.get_data_info(i) for i in range(len(dataset))]
        assert [item['img_path'] for item in items] == [str(image.path) for image in written.images]
        assert all(Path(item['img_path']).is_file() for item in items)
        assert [i['bbox'] for i in items[0]['instances']] == [[10, 5, 30, 15]]
        paths += [Path(item['img_path']).relative_to(folder.root) for item in items]
    assert (
        len(paths)
        == len(set(paths))
        == len([p for p in folder.root.rglob('*') if p.suffix in ('.jpg', '.png')])
    )
    assert not any('train' in path.as_posix() for path in paths[1:])


def test_a_folder_of_two_formats_lists_both(folder):
    yolo_labelimg(folder)
    voc_labelimg(folder)
    with pytest.raises(
        InputError, match=r'more than one format: Pascal VOC \(.*\); YOLO \(.*\)\. Specify which'
    ):
        find_dataset(folder.root)
    assert find_dataset(folder.root, 'yolo').format == 'yolo'


def test_two_candidates_for_a_split_are_listed(folder):
    folder.image('images/a.jpg').coco('a_train.json', 'a.jpg').coco('b_train.json', 'a.jpg')
    with pytest.raises(InputError, match=r"2 candidates for the split 'train': a_train\.json, b_train\.json"):
        find_dataset(folder.root)


def test_missing_data_raises(folder, tmp_path):
    with pytest.raises(InputError, match='does not exist'):
        find_dataset(folder.root)
    folder.text('notes.md', 'words').image('pictures/a.jpg')
    with pytest.raises(
        InputError, match=r'no annotations in the format of .*; it contains notes\.md, pictures/'
    ):
        find_dataset(folder.root)
    with pytest.raises(InputError, match=r'is a file, not the folder'):
        find_dataset(folder.root / 'notes.md')
    folder.image('images/a.jpg').yolo('labels/a.txt')
    with pytest.raises(InputError, match=r'no class names: add data\.yaml, or classes\.txt'):
        find_dataset(folder.root)


def test_data_yaml_can_be_given_directly(folder):
    yolo_lists(folder)
    assert find_dataset(folder.root / 'my.yaml').splits['val'].read().images[0].path.name == 'b.jpg'


def test_trainval_is_used_if_there_is_no_train(folder):
    folder.image('JPEGImages/a.jpg', 'JPEGImages/b.jpg').xml('Annotations/a.xml', 'Annotations/b.xml')
    folder.text('ImageSets/Main/trainval.txt', 'a\n').text('ImageSets/Main/test.txt', 'b\n')
    found = find_dataset(folder.root)
    assert [image.id for image in found.splits['train'].read().images] == ['a']
    assert 'the list trainval is used for training' in found.notes[0]


def _config(**dataset):
    loader = {
        'dataset': {'type': 'RepeatDataset', 'dataset': {'type': 'CocoDataset', 'pipeline': [1], **dataset}}
    }
    return {
        'train_dataloader': loader,
        'val_dataloader': {
            'dataset': {'type': 'CocoDataset', 'ann_file': 'x', 'test_mode': True, 'indices': 3}
        },
        'test_dataloader': None,
        'val_evaluator': [{'type': 'CocoMetric', 'ann_file': 'x'}],
        'test_evaluator': {'type': 'CocoMetric'},
        'model': {
            'bbox_head': [{'num_classes': 80}, {'num_classes': 80}],
            'rpn_head': {'num_classes': 1},
        },
    }


def test_options_point_a_config_at_the_data(folder):
    for split, name in (('train', 'dog'), ('train', 'ant'), ('valid', 'cat')):
        folder.image(f'{split}/{name}.jpg').xml(f'{split}/{name}.xml', object_name=name)
    options = data_options(_config(), folder.root)
    classes = {'classes': ('ant', 'cat', 'dog')}
    assert options == {
        'train_dataloader.dataset.dataset': {
            'type': 'VOCDataset', 'data_root': str(folder.root), 'data_prefix': {'sub_data_root': 'train/'},
            'img_subdir': '.', 'ann_subdir': '.', 'pipeline': [1], 'metainfo': classes, '_delete_': True,
        },
        'val_dataloader.dataset': {
            'type': 'VOCDataset', 'data_root': str(folder.root), 'data_prefix': {'sub_data_root': 'valid/'},
            'img_subdir': '.', 'ann_subdir': '.', 'test_mode': True, 'metainfo': classes, '_delete_': True,
        },
        'val_evaluator.0.ann_file': None,
        'model.bbox_head.0.num_classes': 3,
        'model.bbox_head.1.num_classes': 3,
    }  # fmt: skip
    for key in ('train_dataloader.dataset.dataset', 'val_dataloader.dataset'):
        kept = {k: v for k, v in options[key].items() if k not in ('pipeline', '_delete_')}
        assert tuple(DATASETS.build(kept).metainfo['classes']) == classes['classes']
    named = data_options(_config(metainfo={'classes': ['dog', 'ant']}), folder.root)
    assert named['train_dataloader.dataset.dataset']['metainfo'] == {'classes': ('dog', 'ant')}
    assert named['model.bbox_head.0.num_classes'] == 2


def test_missing_validation_split_raises(folder):
    voc_kaggle(folder)
    with pytest.raises(
        InputError,
        match=r'no validation split: hold out some images with "tools/data/convert\.py .* --val-fraction 0\.2"',
    ):
        data_options(_config(), folder.root)


def test_roboflow_project_category_is_skipped(folder):
    categories = [{'id': 0, 'name': 'dogs', 'supercategory': 'none'}, {'id': 1, 'name': 'dog'}]
    for split in ('train', 'valid'):
        folder.image(f'{split}/a.jpg').coco(f'{split}/_annotations.coco.json', 'a.jpg', categories=categories)
    assert data_options(_config(), folder.root)['val_dataloader.dataset']['metainfo'] == {'classes': ('dog',)}


def test_real_datasets_are_found(coco_root, bccd_root):
    assert (
        find_dataset(coco_root)
        .summary()
        .endswith(
            'COCO (train: annotations/instances_train2017.json, val: annotations/instances_val2017.json)'
        )
    )
    assert list(find_dataset(bccd_root).splits) == ['train', 'val', 'test']
