"""Comparison of training with one large batch and with the same batch split over processes and iterations."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmcv.transforms import BaseTransform
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from ddetr.analysis.trainings import Training
from ddetr.datasets.shapes import ShapesRecipe, make_shapes
from ddetr.engine.runner import unwrap
from ddetr.registry import HOOKS, TRANSFORMS
from ddetr.utils.files import write_json
from ddetr.weights import read_checkpoint

SIDE = 64  # of all images in pixels: without padding, a batch can be split without changes
EMPTY_EVERY = 3  # every n-th image has no objects, so some parts of a batch have none


class Layout(NamedTuple):
    """Split of the images of one update."""

    processes: int
    accumulated: int
    images: int  # per process and batch

    def __str__(self) -> str:
        return f'{self.processes} processes x {self.accumulated} accumulated x {self.images}'


WHOLE = Layout(1, 1, 4)
PARTS = (Layout(2, 1, 2), Layout(1, 2, 2), Layout(1, 4, 1), Layout(2, 2, 1))


@TRANSFORMS.register_module()
class BoxesInDouble(BaseTransform):
    """Convert the boxes of a packed sample to float64."""

    def transform(self, results: dict) -> dict:
        """Changes `gt_instances.bboxes`."""
        instances = results['data_samples'].gt_instances
        instances.bboxes = instances.bboxes.double()
        return results


@HOOKS.register_module()
class Comparable(Hook):
    """Disable dropout, which is random per batch, and save the initial weights as `start.pth`."""

    def before_train(self, runner: Runner) -> None:
        """See the class."""
        model = unwrap(runner.model)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, 'dropout', None), float):
                setattr(module, 'dropout', 0.0)  # noqa: B010 (mypy takes it for a module)
        if runner.rank == 0:
            torch.save({'state_dict': model.state_dict()}, Path(runner.work_dir, 'start.pth'))


def data_options(folder: Path, images: int) -> dict[str, Any]:
    """Draw a dataset with some empty images, all of one size; return the options to train a config on it."""
    data_root = folder / 'shapes'
    make_shapes(data_root, ShapesRecipe(num_train=images, num_val=1, size=SIDE))
    path = data_root / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    kept = [box for box in content['annotations'] if box['image_id'] % EMPTY_EVERY]
    write_json({**content, 'annotations': kept}, path)
    resize = {'type': 'Resize', 'scale': (SIDE, SIDE), 'keep_ratio': False}
    pipeline = [
        {'type': 'LoadImageFromFile'},
        {'type': 'LoadAnnotations', 'with_bbox': True},
        resize,
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': 'PackDetInputs'},
        {'type': 'BoxesInDouble'},
    ]
    loader = {'batch_sampler': None, 'dataset.data_root': str(data_root), 'dataset.pipeline': pipeline}
    return {f'train_dataloader.{key}': value for key, value in loader.items()}


def train_parts(config: str, data: Mapping[str, Any], layout: Layout, epochs: int, work_dir: Path) -> Path:
    """Train a config with a layout, without dropout, validation and schedule; return the last checkpoint."""
    options = {
        **data,
        **dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator')),
        'model.backbone.norm_eval': True,  # trained batch norms would depend on the split
        'model.backbone.norm_cfg.requires_grad': False,
        'train_dataloader.batch_size': layout.images,
        'optim_wrapper.accumulative_counts': layout.accumulated,
        'train_cfg.max_epochs': epochs,
        'param_scheduler': [],
        'custom_hooks': [{'type': 'Comparable'}],
        'find_unused_parameters': True,
    }
    codes = Training(config, options, layout.processes, double=True).run(work_dir)
    if any(codes):
        raise RuntimeError(f'{config} as {layout} ended with {codes}: see {work_dir}/console.txt')
    return work_dir / f'epoch_{epochs}.pth'


def apart(checkpoint: Path, whole: Path) -> tuple[float, float]:
    """Return the norm of the difference of all weights, relative to the weights and to their change in training."""
    a, b, start = (
        torch.cat([value.double().flatten() for value in read_checkpoint(path)['state_dict'].values()])
        for path in (checkpoint, whole, whole.with_name('start.pth'))
    )
    difference = (a - b).norm()
    return float(difference / b.norm()), float(difference / (b - start).norm())
