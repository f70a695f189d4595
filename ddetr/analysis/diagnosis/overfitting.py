"""Overfitting test: train on a few images and evaluate on the same ones."""

from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, train_detector
from ddetr.engine.config import dataset_of


class Overfitted(NamedTuple):
    """Result of overfitting."""

    ap: float  # COCO box AP on the training images, in [0, 1]
    pictures: Path  # folder of these images with their boxes


def overfit(cfg: Config, num_images: int, max_iters: int, work_dir: Path) -> Overfitted:
    """Train on `num_images` of a config's training images for `max_iters` iterations and evaluate on them."""
    changed = Config({**cfg.to_dict(), **overfit_changes(cfg, num_images, max_iters)})
    work_dir.mkdir(parents=True, exist_ok=True)
    path, pictures = work_dir / 'overfit_config.py', work_dir / 'pictures'
    changed.dump(path)
    train_detector(path, TrainOptions(work_dir=str(work_dir)))
    checkpoint = work_dir / f'iter_{max_iters}.pth'
    metrics = evaluate_detector(path, checkpoint, EvalOptions(work_dir=str(work_dir), show_dir=str(pictures)))
    return Overfitted(metrics['coco/bbox_mAP'], pictures)


def overfit_changes(cfg: Config, num_images: int, max_iters: int) -> dict[str, Any]:
    """Return changes that make a training config overfit `num_images` of its training images.

    Images are not augmented and have the size of the test pipeline. After a short warm-up, the learning rate is
    constant until the last fifth of the iterations.
    """
    pipeline = dataset_of(cfg.test_dataloader)['pipeline']
    images = {**dataset_of(cfg.train_dataloader), 'indices': num_images, 'pipeline': pipeline}
    images['filter_cfg'] = {'filter_empty_gt': True}
    loaders = {
        # infinite: restarting the loader after every few images would dominate the run time
        'train_dataloader': {
            **cfg.train_dataloader,
            'dataset': images,
            'sampler': {'type': 'InfiniteSampler', 'shuffle': True},
        },
        **{f'{split}_dataloader': {**cfg.test_dataloader, 'dataset': images} for split in ('val', 'test')},
    }
    # evaluate against the samples' own annotations: no annotation file has just these images
    evaluator = {**cfg.test_evaluator, 'ann_file': None}
    last_fifth = max_iters * 4 // 5
    return loaders | {
        'val_evaluator': evaluator,
        'test_evaluator': evaluator,
        'train_cfg': {'type': 'IterBasedTrainLoop', 'max_iters': max_iters, 'val_interval': max_iters},
        'param_scheduler': [
            {
                'type': 'LinearLR',
                'start_factor': 0.01,
                'begin': 0,
                'end': max(1, max_iters // 20),
                'by_epoch': False,
            },
            {'type': 'MultiStepLR', 'milestones': [last_fifth], 'gamma': 0.1, 'by_epoch': False},
        ],
        'default_hooks': {
            **cfg.default_hooks,
            'checkpoint': {'type': 'CheckpointHook', 'interval': max_iters, 'by_epoch': False},
        },
        'log_processor': {'type': 'LogProcessor', 'window_size': 50, 'by_epoch': False},
    }
