"""Class ids, their order and the annotation format affect neither losses nor names."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from ddetr.apis import TrainOptions, inference_detector, init_detector, train_detector
from ddetr.datasets.formats import convert_dataset, data_options
from ddetr.datasets.shapes import SHAPE_CLASSES, ShapesRecipe, make_shapes
from ddetr.engine.config import load_config
from ddetr.registry import DATASETS, MODELS
from ddetr.weights import read_weights, write_weights

SIX = {
    'from 0': range(6),
    'from 1': range(1, 7),
    'with gaps': (3, 4, 11, 40, 90, 1000),
    'in another order': (6, 2, 9, 1, 5, 4),
}


@pytest.fixture(scope='module')
def variants(tmp_path_factory) -> dict[str, Path]:
    """Folders of one dataset: COCO with other ids, and all three formats."""
    root = tmp_path_factory.mktemp('variants')
    make_shapes(root / 'shapes', ShapesRecipe(num_train=10, num_val=2, size=64))
    folders = {}
    for name, ids in SIX.items():
        folders[name] = root / name.replace(' ', '_')
        shutil.copytree(root / 'shapes', folders[name])
        for path in (folders[name] / 'annotations').glob('*.json'):
            _renumber(path, dict(zip(SHAPE_CLASSES, ids, strict=True)))
    for format in ('voc', 'yolo'):
        folders[format] = root / format
        convert_dataset(folders['with gaps'], format, folders[format])
    folders['voc of another tool'] = root / 'voc2'
    shutil.copytree(root / 'voc', root / 'voc2')
    (root / 'voc2/classes.txt').unlink()  # which only our converter writes
    return folders


def _renumber(path: Path, id_of: dict[str, int]) -> None:
    coco = json.loads(path.read_text())
    name_of = {category['id']: category['name'] for category in coco['categories']}
    for annotation in coco['annotations']:
        annotation['category_id'] = id_of[name_of[annotation['category_id']]]
    for category in coco['categories']:
        category['id'] = id_of[category['name']]
    random.Random(0).shuffle(coco['categories'])  # the file's order says nothing
    path.write_text(json.dumps(coco))


@pytest.fixture
def train(repo_root, tmp_path):
    """Train five steps on a folder; return the losses of each step, the class names and the detections."""
    config = repo_root / 'tests/configs/tiny_shapes.py'

    def run(folder: Path, classes: tuple[str, ...] = (), load_from: Path | None = None):
        named = {'train_dataloader.dataset.metainfo': {'classes': classes}} if classes else {}
        options = data_options(load_config(config, named), folder)
        options |= {
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 2,
            'load_from': load_from and str(load_from),
        }
        work_dir = tmp_path / f'run_{len([*tmp_path.iterdir()])}'
        runner = train_detector(config, TrainOptions(work_dir=str(work_dir), cfg_options=options))
        history = {
            name: log.data[0].tolist()
            for name, log in runner.message_hub.log_scalars.items()
            if 'loss' in name
        }
        assert all(len(values) == 5 for values in history.values())
        numbers = {key: value for key, value in options.items() if 'num_classes' in key}
        model = init_detector(config, work_dir / 'epoch_1.pth', 'cpu', numbers)
        found = inference_detector(model, next(folder.rglob('*.jpg'))).pred_instances
        names = [model.dataset_meta['classes'][label] for label in found.labels.tolist()]
        return history, tuple(model.dataset_meta['classes']), names

    return run


def test_ids_and_formats_change_no_loss_and_no_name(variants, train):
    first, classes, names = train(variants['from 0'])
    assert classes == SHAPE_CLASSES
    assert {'train/loss', 'train/loss_cls', 'train/loss_bbox'} <= first.keys()
    assert len(set(first['train/loss'])) == 5
    for name in ('from 1', 'with gaps', 'voc', 'yolo'):
        assert train(variants[name]) == (first, SHAPE_CLASSES, names), name
    for name in ('in another order', 'voc of another tool'):
        assert train(variants[name], SHAPE_CLASSES) == (first, SHAPE_CLASSES, names), name


def test_without_metainfo_the_ids_or_the_alphabet_order_the_classes(variants, repo_root):
    config = load_config(repo_root / 'tests/configs/tiny_shapes.py')
    by_id = tuple(name for _, name in sorted(zip(SIX['in another order'], SHAPE_CLASSES, strict=True)))
    for name, order in (('in another order', by_id), ('voc of another tool', tuple(sorted(SHAPE_CLASSES)))):
        options = data_options(config, variants[name])
        datasets = [value for key, value in options.items() if key.endswith('dataloader.dataset')]
        assert [dataset['metainfo']['classes'] for dataset in datasets] == [order] * 3
        plain = {k: v for k, v in datasets[0].items() if k not in ('metainfo', 'pipeline', '_delete_')}
        assert DATASETS.build(plain).metainfo['classes'] == order  # the dataset alone says the same
    assert by_id != SHAPE_CLASSES != tuple(sorted(SHAPE_CLASSES))


def test_from_cocos_checkpoints_too(variants, train, repo_root, tmp_path):
    torch.manual_seed(1)
    config = load_config(repo_root / 'tests/configs/tiny_shapes.py', {'model.bbox_head.num_classes': 80})
    model = MODELS.build(config.model)
    of_80, of_91 = tmp_path / 'coco.pth', tmp_path / 'original.pth'
    torch.save({'state_dict': model.state_dict()}, of_80)
    write_weights(of_91, read_weights(of_80, None, model), 'original', config.model, False)
    assert len(torch.load(of_91)['model']['class_embed.0.weight']) == 91  # by COCO's category ids
    first = train(variants['from 1'], load_from=of_91)
    for log in tmp_path.glob('run_*/*/*.log'):
        assert 'class tensors reinitialised; ' in log.read_text()
        assert '6 classes instead of 80' in log.read_text()
    for name, path in (('voc', of_91), ('with gaps', of_80), ('yolo', of_80)):
        assert train(variants[name], load_from=path) == first, name
