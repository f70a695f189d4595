"""Try MMDetection's configs, unmodified: `python tools/analysis/mmdet_configs.py CONFIG_ROOT --data-root data/coco`.

CONFIG_ROOT is the `configs` folder of MMDetection 3.x (in its wheel `mmdet/.mim/configs`). Each config of the
detectors that are here is built, trains one step and is tested on COCO's images, through its own pipelines. Set aside
are, for the measuring only, pretrained weights (so that nothing is fetched and batch norms are trained), the size of
images and batches, and the length of training. Prints a table; exits with status 1 if a config fails without a
sentence that explains it.
"""

import argparse
import sys
from pathlib import Path

from ddetr.analysis.trial import IMAGES, Trial, try_config
from ddetr.utils import InputError
from ddetr.utils.cli import run_cli
from ddetr.utils.files import write_atomically
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

IN_SCOPE = ('deformable_detr/*.py', 'detr/*.py', 'faster_rcnn/*fpn*.py')
HEADER = ('config', 'built', 'stepped', 'tested', 'what is missing')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config_root', type=Path, metavar='CONFIG_ROOT')
    parser.add_argument('--data-root', default='data/coco', help="data in COCO's layout")
    parser.add_argument(
        '--size', nargs=2, type=int, default=(256, 192), metavar=('W', 'H'), help='images are made to fit'
    )
    parser.add_argument('--only', nargs='+', default=IN_SCOPE, metavar='PATTERN', help='below CONFIG_ROOT')
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    parser.add_argument('--out', type=Path, help='write the table to this file too')
    args = parser.parse_args()
    configs = [path for pattern in args.only for path in sorted(args.config_root.glob(pattern))]
    if not configs:
        raise InputError(
            f"{args.config_root} has none of {', '.join(args.only)}: name MMDetection's configs."
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


def _row(config: Path, trial: Trial) -> tuple[str, ...]:
    steps = ('yes' if step else 'no' for step in (trial.built, trial.stepped, trial.tested))
    return (f'{config.parent.name}/{config.stem}', *steps, trial.missing)


if __name__ == '__main__':
    run_cli(main)
