"""Small clean dataset of shapes, for tests that plant faults in copies of it."""

import json
import shutil
from pathlib import Path

import pytest

from ddetr.datasets.shapes import ShapesRecipe, make_shapes

SEED = 2  # draws no image without shapes
TRAIN, VAL = 'annotations/instances_train2017.json', 'annotations/instances_val2017.json'


class Editable:
    """A dataset in COCO's format: files in a folder, and the content of its annotation files, to be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.train, self.val = (json.loads((root / name).read_text()) for name in (TRAIN, VAL))

    def file(self, index: int) -> Path:
        """The file of a training image."""
        return self.root / 'train2017' / self.train['images'][index]['file_name']

    def boxes(self, index: int) -> list[dict]:
        """The annotations of a training image."""
        image_id = self.train['images'][index]['id']
        return [a for a in self.train['annotations'] if a['image_id'] == image_id]

    def add_box(self, index: int, bbox: list, **keys) -> None:
        """Add an annotation to a training image."""
        content = {'category_id': 1, 'iscrowd': 0, 'area': 0.9 * abs(bbox[2] * bbox[3]), **keys}
        number = 1 + max(a['id'] for a in self.train['annotations'])
        image_id = self.train['images'][index]['id']
        self.train['annotations'].append({'id': number, 'image_id': image_id, 'bbox': bbox, **content})

    def save(self) -> Path:
        for name, content in ((TRAIN, self.train), (VAL, self.val)):
            (self.root / name).write_text(json.dumps(content))
        return self.root


@pytest.fixture(scope='session')
def clean_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('doctor') / 'clean'
    make_shapes(root, ShapesRecipe(num_train=48, num_val=12, size=128, seed=SEED))
    return root


@pytest.fixture
def data(clean_root, tmp_path) -> Editable:
    """A copy of the clean dataset to plant faults into."""
    return Editable(Path(shutil.copytree(clean_root, tmp_path / 'data')))
