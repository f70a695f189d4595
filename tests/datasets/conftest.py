"""A small dataset in COCO's format, to be written whole or broken in one place."""

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest


class TinyCoco:
    """Two images of 100 x 80 pixels and one of 60 x 90, category ids 7 and 3, a crowd; `data` is what is written."""

    def __init__(self, root: Path):
        self.root = root
        self.data: dict[str, Any] = {
            'images': [
                {'id': 10, 'file_name': 'a.jpg', 'width': 100, 'height': 80},
                {'id': 11, 'file_name': 'b.jpg', 'width': 100, 'height': 80},
                {'id': 12, 'file_name': 'c.jpg', 'width': 60, 'height': 90},
            ],
            'categories': [{'id': 7, 'name': 'dog'}, {'id': 3, 'name': 'cat'}],
            'annotations': [
                {'id': 1, 'image_id': 10, 'category_id': 7, 'bbox': [10, 20, 30, 40], 'area': 900, 'iscrowd': 0},
                {'id': 2, 'image_id': 10, 'category_id': 3, 'bbox': [90, 70, 30, 40], 'area': 900, 'iscrowd': 0},
                {'id': 3, 'image_id': 12, 'category_id': 3, 'bbox': [0, 0, 60, 90], 'area': 99, 'iscrowd': 1},
            ],
        }  # fmt: skip

    def write(self, text: str | None = None) -> None:
        """Write the images and `data`, or `text` in its place."""
        (self.root / 'images').mkdir(exist_ok=True)
        for name, shape in (('a.jpg', (80, 100, 3)), ('b.jpg', (80, 100, 3)), ('c.jpg', (90, 60, 3))):
            cv2.imwrite(str(self.root / 'images' / name), np.full(shape, 128, dtype=np.uint8))
        (self.root / 'ann.json').write_text(json.dumps(self.data) if text is None else text)

    def config(self, **changes: Any) -> dict:
        """Arguments of `CocoDataset`."""
        base = {'data_root': str(self.root), 'ann_file': 'ann.json', 'data_prefix': {'img': 'images/'}}
        return {**copy.deepcopy(base), **changes}


@pytest.fixture
def tiny_coco(tmp_path: Path) -> TinyCoco:
    return TinyCoco(tmp_path)
