"""Show training images after augmentation, with boxes and class names.

    python tools/analysis/browse_dataset.py my_config.py --num-images 24

Writes an annotated picture of each image, and contact sheets of all images.
"""

import argparse
from pathlib import Path

from mmengine.registry import init_default_scope

from ddetr.analysis.browsing import write_pictures
from ddetr.analysis.examples import build_dataset, examples_of
from ddetr.engine.config import load_config
from ddetr.registry import SCOPE
from ddetr.utils import ConfigError
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--split', choices=('train', 'val', 'test'), default='train', help='(default: %(default)s)'
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=24,
        help='number of images, spread over the dataset (default: %(default)s)',
    )
    parser.add_argument(
        '--repeats', type=int, default=1, help='number of augmentations per image (default: %(default)s)'
    )
    parser.add_argument('--output-dir', help='output folder (default: work_dirs/browse_<config>)')
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    init_default_scope(SCOPE)
    loader = cfg.get(f'{args.split}_dataloader')
    if not loader:
        raise ConfigError(f'config {args.config} has no {args.split}_dataloader: choose another --split.')
    dataset = build_dataset(loader['dataset'])
    examples = [e for seed in range(args.repeats) for e in examples_of(dataset, args.num_images, seed)]
    folder = Path(args.output_dir or f'work_dirs/browse_{Path(args.config).stem}')
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    sheets = write_pictures(examples, classes, folder, each=True)
    print(f'{len(examples)} pictures and {len(sheets)} sheets in {folder}')


if __name__ == '__main__':
    run_cli(main)
