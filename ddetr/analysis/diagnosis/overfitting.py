"""Sanity check: train on a few images of a dataset and evaluate on the same ones.

    python tools/analysis/overfit.py configs/quickstart/deformable-detr-refine-twostage_small_coco.py

A detector whose code, classes and boxes are right overfits a handful of images. If the AP stays low here, it will not
learn the whole dataset either: look at the pictures that this command draws first.
"""

import argparse
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, train_detector
from ddetr.engine.config import dataset_of, load_config
from ddetr.utils.cli import add_cfg_options, run_cli


def overfit_changes(cfg: Config, num_images: int, max_iters: int) -> dict[str, Any]:
    """Changes that make a training config overfit `num_images` of its training images.

    The images come without augmentation, at the test pipeline's size; the learning rate is constant until the last
    fifth of the iterations, after a short warm-up.
    """
    pipeline = dataset_of(cfg.test_dataloader)['pipeline']
    images = {**dataset_of(cfg.train_dataloader), 'indices': num_images, 'pipeline': pipeline}
    images['filter_cfg'] = {'filter_empty_gt': True}
    loaders = {
        # without end: a loader that starts anew after every few images spends its time on that
        'train_dataloader': {
            **cfg.train_dataloader,
            'dataset': images,
            'sampler': {'type': 'InfiniteSampler', 'shuffle': True},
        },
        **{f'{split}_dataloader': {**cfg.test_dataloader, 'dataset': images} for split in ('val', 'test')},
    }
    # the samples' annotations are the ground truth: no file has just these images
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--num-images', type=int, default=8, help='how many (default: %(default)s)')
    parser.add_argument('--iters', type=int, default=600, help='training iterations (default: %(default)s)')
    parser.add_argument(
        '--work-dir', help='folder of config, logs, weights, pictures; by default work_dirs/overfit_<config>'
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    work_dir = Path(args.work_dir or f'work_dirs/overfit_{Path(args.config).stem}')
    cfg = load_config(args.config, args.cfg_options)
    overfit = Config({**cfg.to_dict(), **overfit_changes(cfg, args.num_images, args.iters)})
    work_dir.mkdir(parents=True, exist_ok=True)
    path = work_dir / 'overfit_config.py'
    overfit.dump(path)
    train_detector(path, TrainOptions(work_dir=str(work_dir)))
    pictures = work_dir / 'pictures'
    checkpoint = work_dir / f'iter_{args.iters}.pth'
    metrics = evaluate_detector(path, checkpoint, EvalOptions(work_dir=str(work_dir), show_dir=str(pictures)))
    print(
        f'after {args.iters} iterations on {args.num_images} images: AP {metrics["coco/bbox_mAP"]:.3f} on the same '
        f'images; pictures in {pictures}'
    )


if __name__ == '__main__':
    run_cli(main)
