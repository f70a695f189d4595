"""Try a config from elsewhere: build the detector, train a step, test."""

import contextlib
import math
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from ddetr.analysis.smoke import reduced
from ddetr.engine import build_runner
from ddetr.engine.config import load_config
from ddetr.utils.errors import InputError

IMAGES = 4  # to train on, of which a step takes two, and to test


class Trial(NamedTuple):
    """How far a config came.

    Attributes:
        built: model, datasets, optimizer and evaluator.
        stepped: trained a step, with finite losses.
        tested: detected and evaluated on `IMAGES` images.
        missing: why it came no further; '' if nothing is missing.
    """

    built: bool = False
    stepped: bool = False
    tested: bool = False
    missing: str = ''


def try_config(config: str | Path, data_root: str, size_wh: tuple[int, int]) -> Trial:
    """Build, train a step and test, all with the Runner that the commands use.

    The file is read as it is, and so are its pipelines. Set aside are only what `reduced` names, weights to load (which
    may have to be fetched), and how long to train. What is printed on the way goes to stderr.
    """
    trial = Trial()
    with tempfile.TemporaryDirectory() as work_dir, contextlib.redirect_stdout(sys.stderr):
        try:
            changes = _changes(load_config(config), data_root, size_wh)
            runner = build_runner(load_config(config, {**changes, 'work_dir': work_dir}), ['train', 'test'])
            trial = trial._replace(built=True)
            runner.train()
            losses = runner.message_hub.get_scalar('train/loss').data[0]
            if not all(math.isfinite(loss) for loss in losses):
                return trial._replace(missing=f'the loss is {losses}.')
            trial = trial._replace(stepped=True)
            metrics = runner.test()
            return trial._replace(tested='coco/bbox_mAP' in metrics)
        except InputError as error:
            return trial._replace(missing=str(error))
        except Exception as error:  # a fault of ours: one config's must not hide how the others fare
            return trial._replace(missing=f'unexplained {type(error).__name__}: {error}'.split('\n')[0])


def _changes(cfg: Config, data_root: str, size_wh: tuple[int, int]) -> dict[str, Any]:
    changes = {
        **reduced(cfg, data_root, size_wh, IMAGES),
        'train_cfg': {'_delete_': True, 'type': 'IterBasedTrainLoop', 'max_iters': 1},
        'test_evaluator.ann_file': None,
        'default_hooks.checkpoint': None,
        'load_from': None,
        'log_level': 'ERROR',
    }
    for index, augment in enumerate((cfg.model.get('data_preprocessor') or {}).get('batch_augments') or ()):
        if 'size' in augment:  # images are padded to it
            changes[f'model.data_preprocessor.batch_augments.{index}.size'] = size_wh[::-1]
    return changes
