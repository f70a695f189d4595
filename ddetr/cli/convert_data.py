"""Convert a dataset between the formats of COCO, Pascal VOC and YOLO."""

import argparse

from ddetr.utils.names import DATASET_FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('data', help='folder of the dataset; its format and splits are found out')
    parser.add_argument('--to', required=True, choices=DATASET_FORMATS, help='format to write')
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
        '--format', choices=DATASET_FORMATS, help='format to read, where the folder has several'
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and print what was read and written."""
    from ddetr.datasets.formats import convert_dataset

    done = convert_dataset(args.data, args.to, args.out, args.images, args.val_fraction, args.format)
    print(f'{done.summary}; {len(done.classes)} classes')
    for note in done.notes:
        print(f'note: {note}')
    counts = ', '.join(f'{number} {name}' for name, number in done.images.items())
    print(f'{args.out} now holds it in the format {args.to} ({counts} images)')
