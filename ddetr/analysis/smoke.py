"""Smoke test: a short run of a config from training to pictures. It shows that it runs, not how well."""

import copy
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, train_detector
from ddetr.engine.config import load_config

MEAN_OF = 5  # iterations; the loss of a single one depends on its crops
# keys by which backbones load weights and freeze layers; a config may use any of them
UNFROZEN = {'init_cfg': None, 'pretrained': False, 'norm_eval': False, 'frozen_stages': -1}


class SmokeRun(NamedTuple):
    """Result of a smoke run."""

    losses: list[float]  # the total loss of each iteration
    tested: int  # number of test images
    ap: float  # COCO's box AP on them, in [0, 1]
    pictures: int  # number of pictures drawn

    @property
    def first_loss(self) -> float:
        return sum(self.losses[:MEAN_OF]) / MEAN_OF

    @property
    def last_loss(self) -> float:
        return sum(self.losses[-MEAN_OF:]) / MEAN_OF


def smoke_run(
    config: str | Path, data_root: str, size_wh: tuple[int, int], iterations: int, images: int
) -> SmokeRun:
    """Train a config for a few iterations, test it and draw the tested images.

    Only the options in `reduced` and the learning rate are changed. The learning rate is constant and, for SGD, scaled
    by the batch size.
    """
    cfg = load_config(config)
    # linear scaling rule for SGD: training with two images would diverge at the learning rate of large batches
    scales_lr = cfg.optim_wrapper.optimizer.type == 'SGD'
    options = {
        **reduced(cfg, data_root, size_wh, images),
        'train_cfg': {'_delete_': True, 'type': 'IterBasedTrainLoop', 'max_iters': iterations},
        'param_scheduler': [],
        'default_hooks.checkpoint': {'type': 'CheckpointHook', 'interval': iterations, 'by_epoch': False},
    }
    with tempfile.TemporaryDirectory() as work_dir:
        # a copy, because mmengine removes `_delete_` from what it merges
        changes = copy.deepcopy(options)
        runner = train_detector(config, TrainOptions(work_dir, auto_scale_lr=scales_lr, cfg_options=changes))
        losses = [float(loss) for loss in runner.message_hub.get_scalar('train/loss').data[0]]
        show_dir = Path(work_dir, 'pictures')
        options_for_eval = EvalOptions(work_dir=work_dir, show_dir=str(show_dir), cfg_options=options)
        metrics = evaluate_detector(config, Path(work_dir, f'iter_{iterations}.pth'), options_for_eval)
        pictures = sum(path.is_file() for path in show_dir.rglob('*'))
    return SmokeRun(losses, images, metrics['coco/bbox_mAP'], pictures)


def reduced(cfg: Config, data_root: str, size_wh: tuple[int, int], images: int) -> dict[str, Any]:
    """Return options that make a config run in a minute: less data, smaller images, no pretrained weights.

    The data are the first `images` images of COCO's training and validation sets, at most `size_wh` pixels large, with
    a batch size of two. Since no pretrained weights are loaded, nothing in the backbone is frozen: frozen batch norms
    of an untrained network do not normalise.
    """
    data = {
        'train_dataloader': _data(cfg.train_dataloader, data_root, size_wh, images),
        'test_dataloader': _data(cfg.test_dataloader, data_root, size_wh, images),
    }
    backbone = cfg.model.get('backbone') or {}
    unfrozen = {key: value for key, value in UNFROZEN.items() if backbone.get(key) is not None}
    if 'requires_grad' in (backbone.get('norm_cfg') or {}):
        unfrozen['norm_cfg.requires_grad'] = True
    return {
        **{f'model.backbone.{key}': value for key, value in unfrozen.items()},
        **{f'{top}.{key}': value for top, changes in data.items() for key, value in changes.items()},
        'train_dataloader.batch_size': 2,
        **dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator')),
        'log_processor.by_epoch': False,
    }


def _data(loader: Config, data_root: str, size_wh: tuple[int, int], images: int) -> dict[str, Any]:
    """Return changes to a loader: its data, their number, and an additional resize after its pipeline."""
    dataset, path = loader.dataset, 'dataset'
    while 'pipeline' not in dataset:  # unwrap RepeatDataset and similar
        dataset, path = dataset.dataset, f'{path}.dataset'
    *steps, pack = dataset.pipeline
    resize = {'type': 'Resize', 'scale': size_wh, 'keep_ratio': True}
    return {
        f'{path}.data_root': data_root,
        f'{path}.indices': images,
        f'{path}.pipeline': [*steps, resize, pack],
        'num_workers': 0,
        'persistent_workers': False,
    }
