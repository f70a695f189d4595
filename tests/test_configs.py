"""Every config builds, reads data, trains a step and predicts."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from ddetr.analysis.batches import random_batch
from ddetr.analysis.building import build_detector
from ddetr.engine.config import dataset_of, load_config
from ddetr.registry import DATASETS, METRICS
from tests.conftest import ROOT

CONFIGS = sorted(
    path.relative_to(ROOT / 'configs')
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
SET_DETECTORS = [path for path in CONFIGS if path.parent.name in ('detr', 'deformable_detr')]
# its queries start as zeros, so that the first attention has nothing to tell apart
BLIND = {
    'DETR': {f'decoder.layers.0.{n}.weight' for n in ('self_attn.attn.out_proj', 'norms.0')}
    | {'decoder.layers.0.self_attn.attn.in_proj_weight'}
}
SIZE = (128, 160)  # (h, w): 430 tokens of strides 8 to 64
QUERIES = {
    'num_queries': 200,
    'num_one2many_queries': 100,
}  # at most; two stages choose them among the tokens


@pytest.fixture(scope='module')
def data_root(tmp_path_factory):
    """Two images in COCO's layout, with boxes of COCO's category 1."""
    root = tmp_path_factory.mktemp('coco')
    (root / 'annotations').mkdir()
    images = [{'id': i, 'file_name': f'{i}.jpg', 'width': 192, 'height': 128} for i in range(2)]
    boxes = [
        {'id': i, 'image_id': i, 'category_id': 1, 'bbox': [20, 30, 100, 60], 'area': 6000, 'iscrowd': 0}
        for i in range(2)
    ]
    names = ('person', 'star', 'ring', 'cross')  # those that configs ask for by name, too
    categories = [{'id': i, 'name': name} for i, name in enumerate(names, 1)]
    coco = {'images': images, 'annotations': boxes, 'categories': categories}
    for split in ('train2017', 'val2017'):
        (root / split).mkdir()
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(coco))
        for image in images:
            pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
            cv2.imwrite(str(root / split / image['file_name']), pixels)
    return root


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the layers are too small to be worth a second one
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def trained():
    """Models and optimizers that were tried; configs that differ only in data and schedule share them."""
    return set()


@pytest.mark.parametrize('config', CONFIGS, ids=str)
def test_config_builds_trains_and_predicts(config, data_root, trained):
    cfg = load_config(ROOT / 'configs' / config)
    for key, most in QUERIES.items():
        if cfg.model.get(key, 0) > most:
            cfg.model[key] = most
    model_and_optimizer = repr((cfg.model, cfg.optim_wrapper))
    if model_and_optimizer not in trained:
        model = build_detector(cfg)
        _train_a_step(model, cfg)
        _predict(model, cfg)
        trained.add(model_and_optimizer)
    _build_schedulers(cfg)
    _read_data(cfg, data_root)


def _train_a_step(model, cfg):
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():  # box branches start at zero and let no gradient pass
            torch.nn.init.normal_(parameter, std=1e-3)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached = set()
    for name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: reached.add(name) if p.grad.any() else None
        )
    optimized = {id(p) for group in optim_wrapper.optimizer.param_groups for p in group['params']}
    assert {id(p) for p in trained.values()} <= optimized
    model.train()
    losses = model.train_step(random_batch(2, SIZE, model.num_classes), optim_wrapper)
    assert all(torch.isfinite(loss).all() for loss in losses.values())
    assert trained.keys() - reached <= BLIND.get(cfg.model.type, set())


@torch.no_grad()
def _predict(model, cfg):
    model.eval()
    (sample,) = model.test_step(random_batch(1, SIZE, model.num_classes))
    found = sample.pred_instances
    assert found.bboxes.shape == (len(found), 4)
    assert len(found) == len(found.scores) == len(found.labels) <= cfg.model.test_cfg.get('max_per_img', 100)
    assert found.scores.isfinite().all()
    assert (found.bboxes >= 0).all()
    assert (found.bboxes <= torch.tensor([*SIZE[::-1]] * 2) + 1e-3).all()
    assert ((found.labels >= 0) & (found.labels < model.num_classes)).all()


def _build_schedulers(cfg):
    optimizer = torch.optim.SGD([torch.zeros(1)], cfg.optim_wrapper.optimizer.lr)
    for scheduler in cfg.param_scheduler:
        PARAM_SCHEDULERS.build(scheduler, default_args={'optimizer': optimizer, 'epoch_length': 10})


def _read_data(cfg, data_root):
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset_of(loader)['data_root'] = str(data_root)
        item = DATASETS.build(loader.dataset)[0]
        height, width = item['data_samples'].img_shape
        assert item['inputs'].shape == (3, height, width)
        assert item['inputs'].dtype == torch.uint8
        assert 'gt_instances' in item['data_samples']
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        METRICS.build(evaluator)


@pytest.mark.parametrize('config', SET_DETECTORS, ids=str)
def test_batches_are_drawn_as_in_the_original(config):
    """At random, with images of any size and without boxes, and no smaller batch at an epoch's end."""
    loader = load_config(ROOT / 'configs' / config).train_dataloader
    assert loader.batch_sampler is None
    assert loader.drop_last
    assert loader.sampler == {'type': 'DefaultSampler', 'shuffle': True}
    assert loader.dataset.filter_cfg == {'filter_empty_gt': False}
