"""Annotation files read as they are: what is faulty in them is kept or told, and nothing raises."""

import math

import pytest
from PIL import Image

from ddetr.datasets.formats import read_coco_split, read_voc_split, read_yolo_split
from ddetr.datasets.formats.headers import image_size
from ddetr.datasets.transforms import LoadImageFromFile
from ddetr.utils.errors import InputError


def _boxes(split):
    return [box for image in split.images for box in image.boxes]


def test_coco_faults_are_kept_or_reported(tmp_path):
    (tmp_path / 'a.json').write_text(
        '{"images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": "x"}, {"id": 1, "file_name": "b.jpg"}, {}],'
        '"categories": [{"id": "1", "name": "dog"}, 7],'
        '"annotations": [{"image_id": 1, "category_id": 5, "bbox": [1, 2, -3, NaN], "iscrowd": 1, "area": 2},'
        '{"image_id": 1, "bbox": [1, "2", 3, 4]}, {"image_id": 1, "bbox": null}, {"image_id": 2, "bbox": [1, 1, 1, 1]},'
        '{"image_id": 1}, null]}'
    )
    split = read_coco_split(tmp_path / 'a.json', tmp_path, 'train')
    assert [(image.id, image.size, len(image.boxes)) for image in split.images] == [
        (1, None, 3),
        (1, None, 0),
    ]
    first, text, null = _boxes(split)
    assert first.category == 5
    assert first.iscrowd
    assert first.area == 2
    assert first.corners[:3] == (1, 2, -2)
    assert math.isnan(first.corners[3])
    assert math.isnan(text.corners[1])
    assert text.written == (1, '2', 3, 4)
    assert text.category is None
    assert all(map(math.isnan, null.corners))
    assert split.categories == (('1', 'dog'),)
    assert list(split.unreadable) == [
        'a.json: categories[1] has no "id".',
        'a.json: annotations[4] has no "bbox".',
        'a.json: annotations[5] has no "image_id".',
        'a.json: images[2] has no "id".',
    ]
    assert split.lost == ('a.json: annotations[3] (id None) has image_id 2, which no entry of "images" has.',)


@pytest.mark.parametrize('text', ['', '{"images": [', '[1]', '\x00', '{"images": 1}', '[' * 100_000])
def test_files_not_in_coco_format_are_reported(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    split = read_coco_split(tmp_path / 'a.json', tmp_path, 'train')
    assert split.images == ()
    assert split.unreadable
    assert all('a.json' in sentence and '\n' not in sentence for sentence in split.unreadable)


def test_voc_faults_are_kept_or_reported(tmp_path):
    files = {
        'a': '<annotation><filename>other.jpg</filename><object><name>dog</name><difficult>1</difficult><bndbox>'
        '<xmin>1.5</xmin><ymin>x</ymin><xmax>3</xmax></bndbox></object><object><name>cat</name></object></annotation>',
        'b': '<annotation><object>',
        'c': '<annotation><object><name>\n\t ant\n</name><bndbox/></object><object><bndbox/></object></annotation>',
    }
    (tmp_path / 'Annotations').mkdir()
    for name, text in files.items():
        (tmp_path / 'Annotations' / f'{name}.xml').write_text(text)
    (tmp_path / 'list.txt').write_text('a.jpg\n\nb  1\nc -1\nd\n')
    split = read_voc_split(tmp_path / 'Annotations', tmp_path, 'train', tmp_path / 'list.txt')
    (box,) = _boxes(split)
    assert box.corners[0] == 0.5
    assert math.isnan(box.corners[1])
    assert box.corners[2] == 2
    assert box.difficult
    assert math.isnan(box.corners[3])
    assert [name for _, name in split.categories] == ['ant', 'cat', 'dog']  # of the other files, too
    assert [sentence.split(':')[0] for sentence in split.unreadable] == [
        'Annotations/a.xml',
        'Annotations/b.xml is not valid XML (truncated?)',
        'list.txt lists d, but there is no Annotations/d.xml.',
    ]
    whole = read_voc_split(tmp_path / 'Annotations', tmp_path, 'train')
    assert [(box.category, box.where) for box in _boxes(whole)][1:] == [
        ('ant', 'object 1'),
        (None, 'object 2'),
    ]


def test_voc_images_are_found_by_stem_then_by_name(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    for name, said in (('a', 'x.jpg'), ('b', 'C:\\\\pictures\\\\y.png'), ('c', 'z.jpg')):
        text = f'<annotation><filename>{said}</filename></annotation>'
        (tmp_path / 'Annotations' / f'{name}.xml').write_text(text)
    for name in ('a.PNG', 'x.jpg', 'y.png'):
        Image.new('RGB', (4, 4)).save(tmp_path / name)
    split = read_voc_split(tmp_path / 'Annotations', tmp_path, 'train')
    assert [image.path.name for image in split.images] == ['a.PNG', 'y.png', 'c.jpg']


def test_class_lists_set_the_class_order_of_voc(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'Annotations/a.xml').write_text('<annotation><object><name>ant</name></object></annotation>')
    (tmp_path / 'labelmap.txt').write_text('# label:color\nbackground:0,0,0::\ndog:1,2,3::\ncat:::\n')
    split = read_voc_split(tmp_path / 'Annotations', tmp_path, 'train')
    assert [name for _, name in split.categories] == ['dog', 'cat', 'ant']


def test_yolo_faults_are_kept_or_reported(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'labels').mkdir()
    for name in 'abc':
        Image.new('RGB', (40, 20)).save(tmp_path / f'images/{name}.jpg')
    (tmp_path / 'images/d.jpg').write_text('no image')
    (tmp_path / 'labels/a.txt').write_text(
        '0 .5 .5 .5 .5\n9.0 nan 2 .1 .1\n\n1 0 0 .5 0 .5 .5\nx 1 1 1 1\n0 1 2 3\n'
    )
    (tmp_path / 'labels/b.txt').write_text('')
    (tmp_path / 'labels/d.txt').write_text('0 .5 .5 .5 .5\n')
    (tmp_path / 'data.yaml').write_text('val: images\nnames: {1: b, 0: a}\n')
    split = read_yolo_split(tmp_path / 'data.yaml', 'val')
    assert split.categories == ((0, 'a'), (1, 'b'))
    assert [image.header for image in split.images] == [(40, 20)] * 3 + [None]
    plain, nan, polygon, broken = _boxes(split)
    assert plain.corners == (10, 5, 30, 15)
    assert plain.written == (0.5, 0.5, 0.5, 0.5)
    assert nan.category == 9
    assert math.isnan(nan.corners[0])
    assert nan.where == 'line 2'
    assert polygon.corners == (0, 0, 20, 10)
    assert polygon.category == 1
    assert all(map(math.isnan, broken.corners))
    assert [s.split(' is neither')[0] for s in split.unreadable] == [
        'labels/a.txt: line 5',
        'labels/a.txt: line 6',
    ]
    with pytest.raises(InputError, match=r"has no split 'train': it has the keys 'val', 'names'"):
        read_yolo_split(tmp_path / 'data.yaml', 'train')


@pytest.mark.parametrize(
    'text', ['names: [a', '[1]', 'names: {x: 1}\nval: images', 'val: nowhere\nnames: [a]']
)
def test_invalid_data_yaml_raises(tmp_path, text):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'data.yaml').write_text(text)
    with pytest.raises(InputError, match=r'(data\.yaml|names)'):
        read_yolo_split(tmp_path / 'data.yaml', 'val')


def test_missing_files_raise(tmp_path):
    with pytest.raises(InputError, match='does not exist'):
        read_coco_split(tmp_path / 'a.json', tmp_path, 'train')
    with pytest.raises(InputError, match='is a folder'):
        read_coco_split(tmp_path, tmp_path, 'train')
    with pytest.raises(InputError, match='does not exist'):
        read_voc_split(tmp_path / 'Annotations', tmp_path, 'train')
    with pytest.raises(InputError, match=r'list of images .* is a folder'):
        read_voc_split(tmp_path, tmp_path, 'train', tmp_path)
    with pytest.raises(InputError, match='does not exist'):
        read_yolo_split(tmp_path / 'data.yaml', 'train')


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp', '.tiff'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_header_size_equals_the_loaded_size(tmp_path, suffix, orientation):
    image, exif = Image.new('RGB', (40, 20)), Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f'a{suffix}'
    image.save(path, exif=exif)
    seen = LoadImageFromFile()({'img_path': str(path)})['img_shape']
    assert image_size(path) == seen[::-1]
