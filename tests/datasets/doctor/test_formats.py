"""Faults specific to Pascal VOC or YOLO format, and faults common to all formats."""

import pytest

from ddetr.datasets.doctor import examine, fix
from ddetr.datasets.formats import find_dataset, write_dataset


@pytest.fixture
def written(clean_root, tmp_path):
    """The clean dataset in another format."""

    def write(format):
        splits = {name: split.read() for name, split in find_dataset(clean_root).splits.items()}
        classes = tuple(category.name for category in splits['train'].categories)
        write_dataset(splits, classes, format, tmp_path / format)
        return tmp_path / format

    return write


def names(root):
    return {fault.name: fault.count for fault in examine(root).faults}


@pytest.mark.parametrize('format', ['voc', 'yolo'])
def test_the_clean_dataset_has_no_fault(written, format):
    assert names(written(format)) == {}


def edit(path, change):
    path.write_text(change(path.read_text()))


def test_faults_of_voc(written, tmp_path):
    root = written('voc')
    files = sorted((root / 'Annotations').glob('*.xml'))
    train = [f for f in files if f.stem in (root / 'ImageSets/Main/train.txt').read_text().split()]
    edit(train[0], lambda text: text[: len(text) // 2])
    edit(train[1], lambda text: text.replace('<filename>', '<filename>other_'))
    corners = '<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>'
    box = f'<object><name>{{}}</name><bndbox>{corners}</bndbox></object>'
    objects = [
        ('ring', 50, 50, 50, 50),
        ('ring', 'nan', 2, 30, 40),
        ('ring', 0.1, 0.2, 0.5, 0.7),
        (' Ring', 9, 9, 40, 40),
    ]
    for path, numbers in zip(train[2:], objects, strict=False):
        edit(path, lambda text, n=numbers: text.replace('</annotation>', box.format(*n) + '</annotation>'))
    (root / 'Annotations/orphan.xml').write_text('<annotation/>')
    image = next(root.rglob(f'{train[8].stem}.*g'))
    image.rename(image.with_suffix('.PNG'))
    assert names(root) == {
        'unreadable annotation': 1,
        'annotation file not named like its image': 1,
        'box without area': 1,
        'box that is not a number': 1,
        'fractions instead of pixels': 1,
        'inconsistent spelling of a class name': 1,
        'empty class name or surrounding spaces': 1,
        'class in one split only': 1,
        'class imbalance': 1,
        'label file without image': 1,
        'wrong file suffix': 1,
        'image missing from the annotations': 1,  # that of the broken file
    }
    fix(examine(root), tmp_path / 'fixed')
    assert [fault.name for fault in examine(tmp_path / 'fixed').faults if fault.fix] == []


def test_faults_of_yolo(written, tmp_path):
    root = written('yolo')
    files = sorted((root / 'labels/train').glob('*.txt'))
    lines = ['1 30 40 20 20', '17 0.5 0.5 0.2 0.2', '1 0.5 0.5', '1 0.5 0.5 0 0.3', '1 0.95 0.5 0.3 0.2']
    for path, line in zip(files, lines, strict=False):
        edit(path, lambda text, line=line: f'{text}{line}\n')
    (root / 'labels/train/orphan.txt').write_text('1 0.5 0.5 0.2 0.2\n')
    files[8].unlink()
    assert names(root) == {
        'pixels instead of fractions': 1,
        'unknown category': 1,
        'unreadable annotation': 1,
        'box without area': 1,
        'box partly outside its image': 1,
        'label file without image': 1,
        'image without boxes': 1,
    }
    fix(examine(root), tmp_path / 'fixed')
    assert [fault.name for fault in examine(tmp_path / 'fixed').faults if fault.fix] == []


def test_an_empty_split_is_an_error(data):
    data.val['annotations'] = []
    report = examine(data.save(), images=False)
    assert [fault.name for fault in report.of('error')] == ['empty split']
