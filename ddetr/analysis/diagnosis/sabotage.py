"""Six ways to break a working training setup, to test the diagnosis."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ddetr.engine.config import dataset_of
from ddetr.utils.files import write_json

# Name of each, and the cause that must be reported first; '' for none.
SABOTAGES = {
    'healthy': '',
    'shuffled labels': 'labels',
    'shuffled images': 'labels',
    'xyxy as xywh': 'boxes',
    'learning rate x 100': 'learning_rate',
    'class mapping': 'classes',
    'normalisation': 'normalisation',
    'no pretrained weights': 'weights',
}


def sabotaged(cfg: Config, name: str, folder: Path) -> Config:
    """Return a copy of a config with one fault; modified annotation files are written to `folder`."""
    cfg = Config(cfg.to_dict())
    if name in _IN_THE_FILE:
        _rewrite(cfg, folder, _IN_THE_FILE[name])
    elif name == 'learning rate x 100':
        cfg.optim_wrapper.optimizer.lr *= 100
    elif name == 'normalisation':
        old = cfg.model.data_preprocessor
        cfg.merge_from_dict(
            {
                'model.data_preprocessor.bgr_to_rgb': not old.get('bgr_to_rgb', False),
                'model.data_preprocessor.mean': [0.0] * 3,
                'model.data_preprocessor.std': [1.0] * 3,
            }
        )
    elif name == 'no pretrained weights':
        cfg.merge_from_dict({'load_from': None, 'allow_partial': False})
        for key in ('init_cfg', 'checkpoint', 'pretrained'):
            cfg.model.get('backbone', {}).pop(key, None)
    return cfg


def _rewrite(cfg: Config, folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Modify a copy of the training annotation file."""
    dataset: Any = dataset_of(cfg.train_dataloader)
    content = json.loads(Path(dataset.get('data_root', ''), dataset['ann_file']).read_text())
    change(content)
    path = folder.resolve() / 'sabotaged.json'
    write_json(content, path)
    dataset['ann_file'] = str(path)


def _shuffle_labels(content: dict[str, Any]) -> None:
    labels = [annotation['category_id'] for annotation in content['annotations']]
    random.Random(0).shuffle(labels)
    for annotation, label in zip(content['annotations'], labels, strict=True):
        annotation['category_id'] = label


def _shuffle_images(content: dict[str, Any]) -> None:
    ids = [image['id'] for image in content['images']]
    moved = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    for annotation in content['annotations']:
        annotation['image_id'] = moved[annotation['image_id']]


def _write_corners(content: dict[str, Any]) -> None:
    for annotation in content['annotations']:
        x, y, w, h = annotation['bbox']
        annotation['bbox'] = [x, y, x + w, y + h]


def _move_ids(content: dict[str, Any]) -> None:
    """Assign to each category the boxes of the next one, in the training data only."""
    ids = sorted(category['id'] for category in content['categories'])
    moved = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    for annotation in content['annotations']:
        annotation['category_id'] = moved[annotation['category_id']]


_IN_THE_FILE: dict[str, Callable[[dict[str, Any]], None]] = {
    'shuffled labels': _shuffle_labels,
    'shuffled images': _shuffle_images,
    'xyxy as xywh': _write_corners,
    'class mapping': _move_ids,
}
