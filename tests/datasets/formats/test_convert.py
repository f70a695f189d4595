"""Conversions keep boxes and names, report what they cannot keep, and leave no partial files."""

import json
import random
import sys
from pathlib import Path

import pytest
from PIL import Image

from ddetr.datasets.formats import convert_dataset, find_dataset, xywh_of
from ddetr.datasets.formats import write as writing
from ddetr.utils.errors import InputError

NAMES = {3: 'zebra', 7: 'Wild Cat', 90: 'ant & <bee>', 91: 'never seen'}
CYCLE = ('voc', 'yolo', 'coco')


@pytest.fixture
def source(tmp_path) -> Path:
    """COCO with ids with gaps, boxes to hundredths of a pixel, a crowd, a box without area and one that reaches out."""
    root, draw = tmp_path / 'source', random.Random(1)
    for split, count in (('train', 6), ('val', 3)):
        images, annotations = [], []
        for i in range(count):
            width, height = draw.randint(50, 700), draw.randint(50, 700)
            name = f'{split} {i}.{("jpg", "png")[i % 2]}'
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (width, height)).save(root / split / name)
            images.append({'id': i * 10, 'file_name': name, 'width': width, 'height': height})
            for _ in range(draw.randint(0, 5)):
                x, y = (round(draw.uniform(0, side * 0.8), 2) for side in (width, height))
                w, h = (round(draw.uniform(1, side * 0.19), 2) for side in (width, height))
                annotations.append(_annotation(i * 10, draw.choice([3, 7, 90]), [x, y, w, h]))
        categories = [{'id': id_, 'name': name} for id_, name in NAMES.items()]
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        (root / f'{split}.json').write_text(json.dumps(content))
    return root


def _annotation(image_id, category_id, bbox, **more):
    return {'image_id': image_id, 'category_id': category_id, 'bbox': bbox, 'iscrowd': 0, **more}


def _add(source, *annotations):
    content = json.loads((source / 'train.json').read_text())
    content['annotations'] += annotations
    (source / 'train.json').write_text(json.dumps(content))


def _content(root):
    """By split and image: names and boxes in the order of the file."""
    found = {}
    for split in find_dataset(root).splits.values():
        written = split.read()
        name_of = {category.key: category.name for category in written.categories}
        for image in written.images:
            boxes = [(name_of[box.category], xywh_of(box, written.format)) for box in image.boxes]
            found[split.name, image.path.name] = boxes
    return found


def test_boxes_and_names_survive_round_trips_through_all_formats(source, tmp_path):
    _add(source, _annotation(0, 3, [5.5, 6.25, 0, 0]), _annotation(10, 7, [-3.21, 4, 5000, 2.5]))
    root = source
    for format in CYCLE:
        done = convert_dataset(root, format, tmp_path / format)
        assert done.classes == ('zebra', 'Wild Cat', 'ant & <bee>', 'never seen')
        root = tmp_path / format
        assert find_dataset(root).format == format
        assert _content(root) == _content(source)  # to the last digit, since the source has two decimals
        for path in source.rglob('*.jpg'):
            assert next(root.rglob(path.name)).read_bytes() == path.read_bytes()
    assert list(convert_dataset(source, 'yolo', tmp_path / 'again').notes) == [
        '1 boxes extend far beyond their image: Ultralytics rejects such images.'
    ]


def test_arbitrary_coordinates_agree_to_a_billionth_of_a_pixel(source, tmp_path):
    draw = random.Random(2)
    _add(source, *(_annotation(0, 3, [draw.uniform(0, 30) for _ in range(4)]) for _ in range(200)))
    root = source
    for format in CYCLE:
        convert_dataset(root, format, tmp_path / format)
        root = tmp_path / format
    for key, boxes in _content(source).items():
        for (_, before), (_, after) in zip(boxes, _content(root)[key], strict=True):
            assert after == pytest.approx(before, abs=2e-9, rel=0)


def test_real_data_survives_a_round_trip(bccd_root, tmp_path):
    root = bccd_root
    for format in ('yolo', 'coco', 'voc'):
        done = convert_dataset(root, format, tmp_path / format, images='symlink')
        assert (done.notes, dict(done.images)) == ((), {'train': 205, 'val': 87, 'test': 72})
        root = tmp_path / format
    assert _content(root) == _content(bccd_root)


def test_crowds_are_kept_or_reported_depending_on_the_format(source, tmp_path):
    _add(source, _annotation(0, 3, [1, 2, 30, 40], iscrowd=1, area=600))
    voc = convert_dataset(source, 'voc', tmp_path / 'voc')
    assert '1 crowd regions are marked difficult: VOC has no other flag.' in voc.notes
    back = convert_dataset(tmp_path / 'voc', 'coco', tmp_path / 'coco')
    assert '1 difficult objects are marked iscrowd: COCO has no other flag.' in back.notes
    boxes = json.loads((tmp_path / 'coco/annotations/instances_train.json').read_text())['annotations']
    assert [box['bbox'] for box in boxes if box['iscrowd']] == [[1, 2, 30, 40]]
    yolo = convert_dataset(source, 'yolo', tmp_path / 'yolo')
    assert '1 crowd regions or difficult objects are skipped: YOLO has no flag for them.' in yolo.notes
    assert sum(map(len, _content(source).values())) == sum(map(len, _content(tmp_path / 'yolo').values())) + 1
    same = convert_dataset(source, 'coco', tmp_path / 'same')
    assert not same.notes
    coco = json.loads((tmp_path / 'same/annotations/instances_train.json').read_text())
    assert [(a['area'], a['category_id']) for a in coco['annotations'] if a['iscrowd']] == [(600, 3)]
    assert {c['id']: c['name'] for c in coco['categories']} == NAMES  # COCO's own ids stay


def test_unconvertible_records_are_reported(source, tmp_path):
    _add(source, _annotation(0, 55, [1, 2, 3, 4]), _annotation(0, 3, [1, 2, None, 4]), {'image_id': 0})
    (source / 'train' / 'train 1.png').write_bytes(b'broken')
    (source / 'train' / 'train 2.jpg').unlink()
    notes = convert_dataset(source, 'coco', tmp_path / 'out').notes
    assert sorted(notes) == [
        '1 boxes belong to none of the converted classes, and are skipped.',
        '1 boxes do not consist of four numbers, and are skipped.',
        '1 records cannot be read and are skipped: check the dataset for details.',
        '2 images are missing or cannot be read, and are skipped.',
    ]


def test_images_with_the_same_name_get_unique_names(tmp_path):
    for split in ('train', 'valid'):
        for kind in ('images', 'labels'):
            (tmp_path / 'data' / split / kind).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'data' / split / 'images/a.jpg')
        (tmp_path / 'data' / split / 'labels/a.txt').write_text(f'{int(split == "valid")} .5 .5 .5 .5\n')
    (tmp_path / 'data/data.yaml').write_text('train: train/images\nval: valid/images\nnames: [x, y]\n')
    convert_dataset(tmp_path / 'data', 'voc', tmp_path / 'voc')
    assert _content(tmp_path / 'voc') == {
        ('train', 'a.jpg'): [('x', [2, 2, 4, 4])],
        ('val', 'val_a.jpg'): [('y', [2, 2, 4, 4])],
    }


def test_unrotated_annotations_are_kept_or_skipped(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / 'data/images').mkdir(parents=True)
    Image.new('RGB', (40, 20)).save(tmp_path / 'data/images/a.jpg', exif=exif)
    for width, height in ((40, 20), (20, 40)):
        images = [{'id': 1, 'file_name': 'a.jpg', 'width': width, 'height': height}]
        content = {'images': images, 'annotations': [_annotation(1, 1, [0, 0, 9, 9])]}
        content['categories'] = [{'id': 1, 'name': 'x'}]
        (tmp_path / 'data/labels.json').write_text(json.dumps(content))
        for format in ('coco', 'voc', 'yolo'):
            out = tmp_path / f'{format}{width}'
            notes = convert_dataset(tmp_path / 'data', format, out).notes
            if format == 'yolo' and width == 40:
                assert 'unrotated annotations' in notes[0]
            else:
                (image,) = find_dataset(out).splits['train'].read().images
                assert (image.size or image.header) == (width, height)


def test_fraction_is_held_out_for_validation(source, tmp_path):
    (source / 'val.json').unlink()
    for again in 'ab':
        done = convert_dataset(source, 'yolo', tmp_path / again, val_fraction=0.34)
        assert dict(done.images) == {'train': 4, 'val': 2}
    first, second = (sorted(p.relative_to(tmp_path / a) for p in (tmp_path / a).rglob('*')) for a in 'ab')
    assert first == second
    with pytest.raises(InputError, match=r'leaves 6 to train on and 0 to validate on'):
        convert_dataset(source, 'yolo', tmp_path / 'c', val_fraction=0.01)
    with pytest.raises(InputError, match=r'already has the splits train, val'):
        convert_dataset(tmp_path / 'a', 'yolo', tmp_path / 'c', val_fraction=0.5)


@pytest.mark.parametrize('images', ['copy', 'symlink', 'hardlink'])
def test_images_are_copied_or_linked(source, tmp_path, images):
    convert_dataset(source, 'coco', tmp_path / 'out', images)
    path, original = tmp_path / 'out/train/train 0.jpg', source / 'train/train 0.jpg'
    assert path.read_bytes() == original.read_bytes()
    assert path.is_symlink() == (images == 'symlink')
    assert path.samefile(original) == (images != 'copy')


def test_no_partial_files_are_left_and_nothing_is_overwritten(source, tmp_path, monkeypatch):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine').touch()
    with pytest.raises(InputError, match='already exists: choose a new folder'):
        convert_dataset(source, 'voc', tmp_path / 'out')

    def fail(source, path):
        raise OSError('disk full')

    monkeypatch.setitem(writing._PLACE, 'copy', fail)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(OSError, match='disk full'):
        convert_dataset(source, 'voc', tmp_path / 'new')
    assert sorted(tmp_path.rglob('*')) == before


def test_the_command(source, tmp_path, run):
    out = tmp_path / 'out'
    said = run(
        sys.executable, 'tools/data/convert.py', source, '--to', 'yolo', '--out', out, '--images', 'symlink'
    )
    assert f'{source} is in the format of COCO (train: train.json, val: val.json); 4 classes' in said
    assert f'Converted to yolo in {out} (6 train, 3 val images)' in said
    assert 'error: ' in run(
        sys.executable, 'tools/data/convert.py', out / 'no', '--to', 'voc', '--out', out, expect=2
    )
