"""Convert a dataset between COCO, Pascal VOC and YOLO format."""

import argparse

from ddetr.utils.names import DATASET_FORMATS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('data', help='dataset folder; its format and splits are detected')
    parser.add_argument('--to', required=True, choices=DATASET_FORMATS, help='output format')
    parser.add_argument('--out', required=True, help='output folder')
    parser.add_argument(
        '--images',
        choices=['copy', 'symlink', 'hardlink'],
        default='copy',
        help='how to transfer the images (default: %(default)s)',
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        default=0.0,
        help='fraction of the training images to hold out for validation, if the dataset has no val split',
    )
    parser.add_argument(
        '--format', choices=DATASET_FORMATS, help='input format, if the folder contains several'
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and print a summary."""
    from ddetr.datasets.formats import convert_dataset

    done = convert_dataset(args.data, args.to, args.out, args.images, args.val_fraction, args.format)
    print(f'{done.summary}; {len(done.classes)} classes')
    for note in done.notes:
        print(f'note: {note}')
    counts = ', '.join(f'{number} {name}' for name, number in done.images.items())
    print(f'Converted to {args.to} in {args.out} ({counts} images)')
