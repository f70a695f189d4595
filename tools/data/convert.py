"""Convert a dataset between COCO, Pascal VOC and YOLO: python tools/data/convert.py DATA --to coco --out DIR"""

import argparse

from ddetr.datasets.formats import convert_dataset
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('data', help='folder of the dataset; its format and splits are found out')
    parser.add_argument('--to', required=True, choices=['coco', 'voc', 'yolo'], help='format to write')
    parser.add_argument('--out', required=True, help='new folder')
    parser.add_argument(
        '--images',
        choices=['copy', 'symlink', 'hardlink'],
        default='copy',
        help='how the new folder gets the images (default: %(default)s)',
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        default=0.0,
        help='part of the training images to hold out as val, for a dataset without one',
    )
    parser.add_argument(
        '--format', choices=['coco', 'voc', 'yolo'], help='format to read, where the folder has several'
    )
    args = parser.parse_args()
    done = convert_dataset(args.data, args.to, args.out, args.images, args.val_fraction, args.format)
    print(f'{done.summary}; {len(done.classes)} classes')
    for note in done.notes:
        print(f'note: {note}')
    counts = ', '.join(f'{number} {name}' for name, number in done.images.items())
    print(f'{args.out} now holds it in the format {args.to} ({counts} images)')


if __name__ == '__main__':
    run_cli(main)
