"""Count parameters and multiply-adds of detectors: `python tools/analysis/model_table.py [CONFIG ...]`.

Without configs: the ten models of the paper's main table, next to the published figures. FLOPs are averaged over the
first 100 images of COCO val2017, as published (only the annotation file is read), or counted at one image size.
docs/results.md describes what is counted. No weights are needed.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ddetr.analysis.flops import Macs, build_for_counting, mean_macs, sizes_when_tested, trainable_parameters
from ddetr.analysis.paper_table import PUBLISHED, PublishedRow
from ddetr.engine.config import load_config
from ddetr.utils.cli import run_cli
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

CONFIGS = Path(__file__).parents[2] / 'configs'
ANN_FILE = 'data/coco/annotations/instances_val2017.json'
HEADER = ('model', 'params (M)', 'published', 'FLOPs (G)', 'published', 'difference')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='*', type=Path, metavar='CONFIG', help="configs (default: the paper's ten models)"
    )
    parser.add_argument(
        '--ann-file', default=ANN_FILE, help='annotation file in COCO format (default: %(default)s)'
    )
    parser.add_argument(
        '--num-images', type=int, default=100, help='number of images to use, from the first (default: 100)'
    )
    parser.add_argument(
        '--size', nargs=2, type=int, metavar=('H', 'W'), help='size of resized images, instead of --ann-file'
    )
    parser.add_argument('--format', choices=FORMATS, default='text')
    parser.add_argument('--parts', action='store_true', help='also print the FLOPs of each component')
    args = parser.parse_args()
    known = {next(CONFIGS.rglob(f'{row.config}.py')).resolve(): row for row in PUBLISHED}
    configs = [config.resolve() for config in args.configs] or list(known)
    rows, parts = [], []
    for config in track(configs, 'models', every_s=0):
        cfg = load_config(config)
        sizes = (
            Counter([tuple(args.size)])
            if args.size
            else sizes_when_tested(cfg, args.ann_file, args.num_images)
        )
        model = build_for_counting(cfg)
        macs = mean_macs(model, sizes)
        row = known.get(config)
        name = row.name if row else config.stem
        rows.append(line_of(name, trainable_parameters(model), macs, row))
        parts += parts_of(name, macs)
    print(render_table(HEADER, rows, args.format))
    if args.parts:
        print('\n' + render_table(('model', 'part', 'FLOPs (G)', 'share'), parts, args.format))


def line_of(name: str, params: int, macs: Macs, published: PublishedRow | None) -> Sequence[str]:
    """One row for `HEADER`."""
    measured = (f'{params / 1e6:.2f}', f'{macs.total / 1e9:.1f}')
    if published is None:
        return (name, measured[0], '', measured[1], '', '')
    difference = macs.total / 1e9 / published.flops_g - 1
    return (
        name,
        measured[0],
        str(published.params_m),
        measured[1],
        str(published.flops_g),
        f'{difference:+.1%}',
    )


def parts_of(name: str, macs: Macs) -> list[Sequence[str]]:
    """One row per component, largest first."""
    ordered = sorted(macs.by_part.items(), key=lambda item: -item[1])
    return [(name, part, f'{count / 1e9:.2f}', f'{count / macs.total:.1%}') for part, count in ordered]


if __name__ == '__main__':
    run_cli(main)
