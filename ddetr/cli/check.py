"""Check a detection dataset and report all faults.

DATA is a dataset folder in COCO, Pascal VOC or YOLO format, or the path or name of a config. The report is printed to
the terminal and written, with pictures of the worst cases, to an HTML page. Exit status: 0 without errors (warnings
and notes do not count), 1 with errors, 2 if there is nothing to check.
"""

import argparse
import sys
from pathlib import Path

from ddetr.utils.cli import add_cfg_options
from ddetr.utils.shipped_configs import find_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('data', help='dataset folder, or config')
    parser.add_argument('--html', help='path of the HTML page (default: work_dirs/doctor/<DATA>.html)')
    parser.add_argument(
        '--no-images', action='store_true', help='do not open the images: faster, but less thorough'
    )
    parser.add_argument('--fix', metavar='FOLDER', help='write a cleaned copy of the dataset to this folder')
    parser.add_argument(
        '--num-queries', type=int, help="number of queries (default: the config's, otherwise 300)"
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('LONG', 'SHORT'),
        help='training image size, in pixels',
    )
    parser.add_argument(
        '--examples', type=int, default=3, help='examples per fault in the terminal (default: %(default)s)'
    )
    parser.add_argument(
        '--workers', type=int, help='number of threads for reading images (default: one per CPU)'
    )
    parser.add_argument(
        '--fiftyone', metavar='NAME', help='create a FiftyOne dataset with the faults as tags'
    )
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Print the report, write the page, and exit with the status."""
    from ddetr.apis import check_data
    from ddetr.datasets.doctor import fix, to_fiftyone, write_html

    report = check_data(
        args.data if Path(args.data).is_dir() else find_config(args.data),
        images=not args.no_images,
        num_queries=args.num_queries,
        sizes=[tuple(args.size)] if args.size else None,
        workers=args.workers,
        cfg_options=args.cfg_options,
    )
    print(report.text(args.examples))
    name = Path(args.data).resolve().stem
    page = args.html or f'work_dirs/doctor/{name}.html'
    write_html(report, page, name)
    print(f'\nPage with pictures: {page}')
    if args.fiftyone:
        print(to_fiftyone(report, args.fiftyone))
    if args.fix:
        print('\n'.join(['', *fix(report, args.fix)]))
    sys.exit(bool(report.of('error')))
