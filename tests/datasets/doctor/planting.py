"""Faults to plant into a dataset in COCO's format, by the name that the doctor has for each."""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from .conftest import Editable

PLANTED: dict[str, Callable[[Editable], None]] = {}


def plants(name: str) -> Callable:
    def add(function: Callable[[Editable], None]) -> Callable[[Editable], None]:
        PLANTED[name] = function
        return function

    return add


@plants('missing image')
def _(data):
    data.file(0).unlink()


@plants('unreadable image')
def _(data):
    data.file(1).write_bytes(b'this is no picture' * 20)


@plants('truncated image')
def _(data):
    data.file(2).write_bytes(data.file(2).read_bytes()[:1500])


@plants('empty image file')
def _(data):
    data.file(3).write_bytes(b'')


def _copy(data, source, target, change=None):
    """Let a training image show what another shows, boxes included."""
    pixels = cv2.imread(str(data.file(source)))
    data.file(target).write_bytes(data.file(source).read_bytes())
    if change is not None:
        cv2.imwrite(str(data.file(target)), change(pixels))
    record, other = data.train['images'][target], data.train['images'][source]
    record.update(width=other['width'], height=other['height'])
    data.train['annotations'] = [a for a in data.train['annotations'] if a['image_id'] != record['id']]
    for box in data.boxes(source):
        data.add_box(target, list(box['bbox']), category_id=box['category_id'])


@plants('duplicate image')
def _(data):
    _copy(data, 4, 5)


@plants('near-duplicate image')
def _(data):
    _copy(data, 6, 7, lambda pixels: np.clip(pixels * 0.9 + 8, 0, 255).astype(np.uint8))


def _to_val(data, source, name, quality=None):
    """Add a training image to the validation images, under a name of its own."""
    path = data.root / 'val2017' / name
    path.write_bytes(data.file(source).read_bytes())
    if quality is not None:
        cv2.imwrite(str(path), cv2.imread(str(data.file(source))), [cv2.IMWRITE_JPEG_QUALITY, quality])
    _list_in_val(data, source, name)


def _list_in_val(data, source, file_name):
    number = 1000 + len(data.val['images'])
    data.val['images'].append({**data.train['images'][source], 'id': number, 'file_name': file_name})
    for box in data.boxes(source):
        annotation_id = 5000 + len(data.val['annotations'])
        data.val['annotations'].append({**box, 'id': annotation_id, 'image_id': number})


@plants('duplicate image in another split')
def _(data):
    _to_val(data, 8, 'copy.jpg')


@plants('near-duplicate image in another split')
def _(data):
    _to_val(data, 9, 'again.jpg', quality=70)


@plants('image in several splits')
def _(data):
    _list_in_val(data, 10, f'../train2017/{data.file(10).name}')


@plants('augmented copies of one image in several splits')
def _(data):
    for split, index in (('train2017', 11), ('val2017', 2)):
        record = (data.train if split == 'train2017' else data.val)['images'][index]
        old = data.root / split / record['file_name']
        record['file_name'] = f'street_jpg.rf.{index:032x}.jpg'
        old.rename(old.with_name(record['file_name']))


@plants('image size differs from the file')
def _(data):
    data.train['images'][12]['width'] += 40


@plants('image without a size')
def _(data):
    del data.train['images'][13]['width']


@plants('EXIF rotation')
def _(data):
    tags = Image.Exif()
    tags[274] = 6  # to be turned by 90 degrees clockwise
    with Image.open(data.file(14)) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(data.file(14), exif=tags, quality=95)


@plants('wrong file suffix')
def _(data):
    with Image.open(data.file(15)) as image:
        image.save(data.file(15), format='PNG')


@plants('grey, transparent, palette or CMYK image')
def _(data):
    with Image.open(data.file(16)) as image:
        image.convert('CMYK').save(data.file(16), format='JPEG')


@plants('more than 8 bits per channel')
def _(data):
    grey = cv2.imread(str(data.file(17)), cv2.IMREAD_GRAYSCALE)
    path = data.file(17).with_suffix('.png')
    data.file(17).unlink()
    cv2.imwrite(str(path), grey.astype(np.uint16) * 16)
    data.train['images'][17]['file_name'] = path.name


@plants('image missing from the annotations')
def _(data):
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(data.root / 'train2017/forgotten.PNG'), picture)


@plants('file name with backslashes or from another machine')
def _(data):
    data.train['images'][18]['file_name'] = rf'C:\Users\me\{data.file(18).name}'


@plants('image listed twice in a split')
def _(data):
    data.train['images'].append({**data.train['images'][19], 'id': 900})
    data.add_box(-1, [2, 2, 9, 9])


@plants('image without boxes')
def _(data):
    number = data.train['images'][20]['id']
    data.train['annotations'] = [a for a in data.train['annotations'] if a['image_id'] != number]


@plants('very small image')
def _(data):
    picture = np.random.default_rng(1).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    cv2.imwrite(str(data.root / 'train2017/icon.jpg'), picture)
    data.train['images'].append({'id': 901, 'file_name': 'icon.jpg', 'width': 24, 'height': 20})
    data.add_box(-1, [3, 3, 14, 12])


@plants('duplicate image id')
def _(data):
    data.val['images'][3]['id'] = data.val['images'][4]['id']


@plants('unknown image id')
def _(data):
    data.add_box(21, [5, 5, 20, 20])
    data.train['annotations'][-1]['image_id'] = 77777


@plants('unknown category')
def _(data):
    data.add_box(21, [5, 5, 20, 20], category_id=55)


@plants('id stored as text')
def _(data):
    data.val['annotations'][0]['id'] = 'first'


@plants('duplicate annotation id')
def _(data):
    data.val['annotations'][1]['id'] = data.val['annotations'][2]['id']


@plants('unreadable annotation')
def _(data):
    data.add_box(21, [5, 5, 20, 20], segmentation=[[5, 5, 25, 5, 25, 25]])
    del data.train['annotations'][-1]['bbox']


@plants('box that is not a number')
def _(data):
    data.add_box(22, [float('nan'), 5, 20, 20])


@plants('box stored as text')
def _(data):
    data.add_box(22, [60, 30, 21, 22])
    data.train['annotations'][-1]['bbox'] = ['60', '30', '21', '22']


@plants('box without area')
def _(data):
    data.add_box(23, [30, 40, 0, 0])


@plants('box outside its image')
def _(data):
    data.add_box(23, [400, 10, 30, 30])


@plants('box partly outside its image')
def _(data):
    data.add_box(24, [-15, 20, 40, 30])


@plants('box smaller than two pixels')
def _(data):
    data.add_box(24, [50.0, 50.0, 1.5, 1.5])


@plants('box too small at the training size')
def _(data):
    data.add_box(24, [70.0, 50.0, 0.5, 20])


@plants('box that covers the whole image')
def _(data):
    record = data.train['images'][25]
    data.add_box(25, [0, 0, record['width'], record['height']])


@plants('duplicate box')
def _(data):
    first = data.boxes(26)[0]
    data.add_box(26, [first['bbox'][0] + 0.5, *first['bbox'][1:]], category_id=first['category_id'])


@plants('nearly coinciding boxes of one class')
def _(data):
    for width in (60, 52):
        data.add_box(46, [10, 10, width, 60], category_id=3)


@plants('object with boxes of two classes')
def _(data):
    first = data.boxes(27)[0]
    data.add_box(27, list(first['bbox']), category_id=first['category_id'] % 6 + 1)


@plants('boxes in the wrong coordinate order')
def _(data):
    for box in data.boxes(28):
        x, y, w, h = box['bbox']
        box['bbox'] = [x, y, x + w, y + h]
    record = data.train['images'][28]
    width, height = record['width'], record['height']
    data.add_box(28, [width // 2, height // 2, width - 2, height - 2])


@plants('fractions instead of pixels')
def _(data):
    width, height = (data.train['images'][29][key] for key in ('width', 'height'))
    for box in data.boxes(29):
        box['bbox'] = [v / side for v, side in zip(box['bbox'], (width, height) * 2, strict=True)]


@plants('area differs from the box')
def _(data):
    data.boxes(30)[0]['area'] = 1e6


@plants('many crowd regions or difficult objects')
def _(data):
    for box in data.val['annotations'][5:20]:
        box['iscrowd'] = 1


@plants('more objects than queries')
def _(data):
    for i in range(320):
        data.add_box(31, [2 + 5 * (i % 20), 2 + 5 * (i // 20), 4, 4], category_id=2)


@plants('more objects than the metric counts')
def _(data):
    pass  # the same image


@plants('unusual size for its class')
def _(data):
    pass  # the other squares, beside so many small ones


@plants('unused category')
def _(data):
    data.train['categories'].append({'id': 20, 'name': 'hexagon'})


@plants('inconsistent spelling of a class name')
def _(data):
    data.train['categories'].append({'id': 21, 'name': 'Triangle'})
    for index in range(32, 40):
        data.add_box(index, [3, 3, 20, 20], category_id=21)


@plants('empty class name or surrounding spaces')
def _(data):
    data.train['categories'].append({'id': 22, 'name': ' blob '})
    data.add_box(40, [3, 3, 20, 20], category_id=22)


@plants('class in one split only')
def _(data):
    pass  # ' blob '


@plants('class imbalance')
def _(data):
    pass  # ' blob '


@plants('duplicate category name')
def _(data):
    data.train['categories'].append({'id': 23, 'name': 'square'})
    data.add_box(41, [3, 3, 20, 20], category_id=23)


@plants('class numbering differs between splits')
def _(data):
    names = {c['name']: c for c in data.val['categories']}
    names['ring']['id'], names['circle']['id'] = names['circle']['id'], names['ring']['id']


@plants('category ids from 0 or with gaps')
def _(data):
    pass  # those of the added categories
