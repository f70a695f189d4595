"""Test unmodified MMDetection configs: `python tools/analysis/mmdet_configs.py CONFIG_ROOT --data-root data/coco`.

CONFIG_ROOT is the `configs` folder of MMDetection 3.x (`mmdet/.mim/configs` in its wheel). Each config of a supported
detector is built, trained for one step and tested on COCO images with its own pipelines. For this test, pretrained
weights are removed (so that nothing is downloaded and batch norms are trained), and image sizes, batch sizes and
training length are reduced. Prints a table; exits with status 1 if a config fails without a clear error message.
"""

import argparse
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
from ddetr.utils import InputError
from ddetr.utils.cli import run_cli
from ddetr.utils.files import write_atomically
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

IMAGES = 4  # number of training and test images; a step uses two
IN_SCOPE = ('deformable_detr/*.py', 'detr/*.py', 'dino/*.py', 'faster_rcnn/*fpn*.py')
HEADER = ('config', 'built', 'stepped', 'tested', 'what is missing')


class Trial(NamedTuple):
    """Result of testing a config.

    Attributes:
        built: Whether model, datasets, optimizer and evaluator were built.
        stepped: Whether a training step ran with finite losses.
        tested: Whether detection and evaluation ran on `IMAGES` images.
        missing: Reason why a later stage failed; '' if none did.
    """

    built: bool = False
    stepped: bool = False
    tested: bool = False
    missing: str = ''


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config_root', type=Path, metavar='CONFIG_ROOT')
    parser.add_argument('--data-root', default='data/coco', help='data in COCO layout')
    parser.add_argument(
        '--size', nargs=2, type=int, default=(320, 256), metavar=('W', 'H'), help='maximum image size'
    )
    parser.add_argument(
        '--only', nargs='+', default=IN_SCOPE, metavar='PATTERN', help='patterns relative to CONFIG_ROOT'
    )
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    parser.add_argument('--out', type=Path, help='also write the table to this file')
    args = parser.parse_args()
    configs = [path for pattern in args.only for path in sorted(args.config_root.glob(pattern))]
    if not configs:
        raise InputError(
            f"{args.config_root} contains none of {', '.join(args.only)}: pass MMDetection's configs folder."
        )
    trials = [
        try_config(path, args.data_root, tuple(args.size)) for path in track(configs, 'configs', every_s=0)
    ]
    table = render_table(HEADER, [_row(*pair) for pair in zip(configs, trials, strict=True)], args.format)
    print(table)
    print(
        f'\n{sum(trial.tested for trial in trials)} of {len(trials)} configs were built, trained a step and tested on '
        f'{IMAGES} images.'
    )
    if args.out:
        write_atomically(args.out, lambda unfinished: unfinished.write_text(f'{table}\n'))
    if any(trial.missing.startswith('unexplained') for trial in trials):
        sys.exit('some configs failed without an explanation')


def try_config(config: str | Path, data_root: str, size_wh: tuple[int, int]) -> Trial:
    """Build a config, train one step and test, with the Runner of the command-line tools.

    The file and its pipelines are used unmodified, except for the changes of `reduced`, pretrained weights (which might
    be downloaded), and the training length. Output goes to stderr.
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
        except Exception as error:  # a bug in ddetr: continue with the other configs
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


def _row(config: Path, trial: Trial) -> tuple[str, ...]:
    steps = ('yes' if step else 'no' for step in (trial.built, trial.stepped, trial.tested))
    return (f'{config.parent.name}/{config.stem}', *steps, trial.missing)


if __name__ == '__main__':
    run_cli(main)
