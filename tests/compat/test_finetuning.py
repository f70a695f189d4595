"""Training from a checkpoint or from scratch, through the functions behind the commands."""

import pytest
import torch

from ddetr.apis import EvalOptions, TrainOptions, evaluate_detector, init_detector, train_detector
from ddetr.utils import CheckpointError, ConfigError

THREE = ('star', 'ring', 'cross')


def _log(work_dir) -> str:
    return max(work_dir.glob('*/*.log')).read_text()


def test_six_classes_become_three(tiny_run, tmp_path):
    classes = {f'{split}_dataloader.dataset.metainfo': {'classes': THREE} for split in ('train', 'val')}
    options = {
        **classes,
        'model.bbox_head.num_classes': 3,
        'load_from': str(tiny_run.checkpoint),
        'train_cfg.max_epochs': 1,
        'optim_wrapper.optimizer.lr': 0.0,  # what is carried over stays as it is, then
        'optim_wrapper.optimizer.weight_decay': 0.0,
    }
    train_detector(tiny_run.config, TrainOptions(work_dir=str(tmp_path), cfg_options=options))
    log = _log(tmp_path)
    assert 'class tensors reinitialised; 3 classes instead of 6' in log
    assert 'random weights' not in log
    before, after = (
        torch.load(p, weights_only=False) for p in (tiny_run.checkpoint, tmp_path / 'epoch_1.pth')
    )
    assert tuple(after['meta']['dataset_meta']['classes']) == THREE
    for name, value in before['state_dict'].items():
        if 'cls_branches' in name:
            assert len(after['state_dict'][name]) == 3
        elif 'running_' not in name and 'num_batches' not in name:
            assert torch.equal(after['state_dict'][name], value), name
    with pytest.raises(CheckpointError, match=r'3 classes, but the config builds .* 6 classes'):
        init_detector(tiny_run.config, tmp_path / 'epoch_1.pth')
    with pytest.raises(ConfigError, match=r'has 3 classes .star, ring, cross.: set num_classes=3'):
        evaluate_detector(
            tiny_run.config, tmp_path / 'epoch_1.pth', EvalOptions(work_dir=str(tmp_path / 't'))
        )
    fitting = {'model.bbox_head.num_classes': 3}
    model = init_detector(tiny_run.config, tmp_path / 'epoch_1.pth', 'cpu', fitting)
    assert tuple(model.dataset_meta['classes']) == THREE


def test_testing_reads_a_checkpoint_once(tiny_run, tmp_path, monkeypatch):
    read, load = [], torch.load
    monkeypatch.setattr(
        torch, 'load', lambda path, *args, **kwargs: (read.append(path), load(path, *args, **kwargs))[1]
    )
    evaluate_detector(tiny_run.config, tiny_run.checkpoint, EvalOptions(work_dir=str(tmp_path)))
    assert read == [tiny_run.checkpoint]


def test_testing_warns_about_different_class_names(tiny_run, tmp_path):
    classes = ['square', 'circle', 'triangle', 'star', 'ring', 'cross']
    options = EvalOptions(
        work_dir=str(tmp_path), cfg_options={'test_dataloader.dataset.metainfo': {'classes': classes}}
    )
    evaluate_detector(tiny_run.config, tiny_run.checkpoint, options)
    assert "2 differ, the first being 'circle' in the checkpoint and 'square' in the dataset" in _log(
        tmp_path
    )


def test_training_from_scratch_warns_once_about_the_random_backbone(tiny_run):
    assert tiny_run.output.count('the backbone starts from random weights') == 1
