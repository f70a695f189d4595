"""Two real datasets without their photographs: published annotations with images of coloured noise.

tests/fixtures/README.md says where the annotations come from. What depends on pixels needs the photographs themselves
(the fixture `photographs`).
"""

import gzip
import json
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

FIXTURES = Path(__file__).resolve().parent / 'fixtures'
COARSE = (
    16  # pixels of noise along each side, enlarged to the image's size: fast to write, and no two are alike
)


def _facts(name: str) -> Any:
    return json.loads(gzip.decompress((FIXTURES / name).read_bytes()))


def _write_image(path: Path, width: int, height: int) -> None:
    noise = random.Random(path.stem).randbytes(3 * COARSE**2)
    Image.frombytes('RGB', (COARSE, COARSE), noise).resize((width, height)).save(path)


def write_coco(root: Path) -> None:
    """The first 128 images of each of COCO 2017's splits, without masks."""
    (root / 'annotations').mkdir(parents=True)
    for split, facts in _facts('coco_annotations.json.gz').items():
        (root / split).mkdir()
        images = []
        for image_id, width, height in facts['images']:
            images.append(
                {'id': image_id, 'file_name': f'{image_id:012d}.jpg', 'width': width, 'height': height}
            )
            _write_image(root / split / images[-1]['file_name'], width, height)
        keys = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd')
        annotations = [dict(zip(keys, values, strict=True)) for values in facts['annotations']]
        content = {'images': images, 'annotations': annotations, 'categories': facts['categories']}
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))


def write_bccd(root: Path) -> None:
    """The blood cells of BCCD in Pascal VOC's layout."""
    facts = _facts('bccd_annotations.json.gz')
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for split, names in facts['splits'].items():
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names) + '\n')
    for name, objects in facts['objects'].items():
        _write_image(root / f'JPEGImages/{name}.jpg', 640, 480)
        annotation = ElementTree.Element('annotation')
        ElementTree.SubElement(annotation, 'filename').text = f'{name}.jpg'
        _fill(ElementTree.SubElement(annotation, 'size'), width=640, height=480, depth=3)
        for label, xmin, ymin, xmax, ymax in objects:
            element = ElementTree.SubElement(annotation, 'object')
            _fill(element, name=label, difficult=0)
            _fill(ElementTree.SubElement(element, 'bndbox'), xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
        ElementTree.ElementTree(annotation).write(root / f'Annotations/{name}.xml')


def _fill(element: ElementTree.Element, **values: object) -> None:
    for key, value in values.items():
        ElementTree.SubElement(element, key).text = str(value)
