"""Generate the built-in shapes dataset in COCO format: python tools/make_shapes.py [OUT_DIR]"""

import argparse
import dataclasses

from ddetr.datasets.shapes import SHAPE_CLASSES, ShapesRecipe, make_shapes
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'out_dir', nargs='?', default='data/shapes', help='output folder (default: %(default)s)'
    )
    parser.add_argument('--num-train', type=int, help='number of training images (default: %(default)s)')
    parser.add_argument('--num-val', type=int, help='number of validation images (default: %(default)s)')
    parser.add_argument(
        '--size', type=int, help='longer side of every image in pixels (default: %(default)s)'
    )
    parser.add_argument(
        '--max-objects', type=int, help='maximum number of shapes per image (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, help='random seed (default: %(default)s)')
    parser.set_defaults(**dataclasses.asdict(ShapesRecipe()))
    args = vars(parser.parse_args())
    out_dir = args.pop('out_dir')
    recipe = ShapesRecipe(**args)
    drawn = make_shapes(out_dir, recipe)
    print(
        f'{out_dir} {"now holds" if drawn else "already held"} {recipe.num_train} training and {recipe.num_val} '
        f'held-out images of {", ".join(SHAPE_CLASSES)}, with annotations in {out_dir}/annotations'
    )


if __name__ == '__main__':
    run_cli(main)
