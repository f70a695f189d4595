"""A training with Mosaic and MixUp, through the calls that the commands make."""

import torch

from ddetr.apis import TrainOptions, train_detector
from ddetr.engine.config import load_config

MIX = [
    {'type': 'Mosaic', 'img_scale': (64, 64)},
    {'type': 'RandomAffine', 'border': (-32, -32)},
    {'type': 'MixUp', 'img_scale': (64, 64)},
    {'type': 'FilterAnnotations', 'min_gt_bbox_wh': (2, 2), 'keep_empty': False},
    {'type': 'PhotoMetricDistortion'},
    {'type': 'PackDetInputs'},
]


def test_training_with_mosaic_resumes_bit_for_bit(tiny_run, tmp_path):
    inner = load_config(tiny_run.config).train_dataloader.dataset.to_dict()
    inner['pipeline'] = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    options = {
        'train_dataloader.dataset': {
            'type': 'MultiImageMixDataset', 'dataset': inner, 'pipeline': MIX, '_delete_': True,
        },
        'train_cfg.max_epochs': 3,
        'train_cfg.val_interval': 9,
        'custom_hooks': [{'type': 'YOLOXModeSwitchHook', 'num_last_epochs': 1}],
        'default_hooks.checkpoint.interval': 1,
        'default_hooks.checkpoint.max_keep_ckpts': 3,
    }  # fmt: skip
    whole = tmp_path / 'whole'
    train_detector(tiny_run.config, TrainOptions(work_dir=str(whole), cfg_options=options))
    resumed = TrainOptions(
        work_dir=str(tmp_path / 'resumed'),
        resume=str(whole / 'epoch_1.pth'),
        cfg_options={**options, 'train_dataloader.num_workers': 2},
    )
    train_detector(tiny_run.config, resumed)
    one, other = (
        torch.load(folder / 'epoch_3.pth', weights_only=False)['state_dict']
        for folder in (whole, tmp_path / 'resumed')
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
