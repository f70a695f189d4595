"""Detect objects in images and videos.

INPUT is an image, a folder, a quoted pattern ('photos/**/*.jpg'), a video, a URL, or a camera index (stop with
Ctrl-C); several inputs are allowed. CHECKPOINT may be a work directory or a file written by `ddetr export`. For each
image, an annotated image and a JSON file are written; for each video, an annotated video and a file with one line of
JSON per frame. Images that cannot be read are skipped and listed at the end, and the exit status is then 2.
"""

import argparse
from typing import TYPE_CHECKING

from ddetr.utils.cli import add_cfg_options
from ddetr.utils.errors import InputError
from ddetr.utils.names import PRECISIONS, RESULT_FORMATS

if TYPE_CHECKING:
    from ddetr.apis import DetInferencer
    from ddetr.apis.prediction import Summary
SHOWN = 10  # maximum number of failures to list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('inputs', metavar='INPUT', nargs='+', help='images, folders, patterns, videos, ...')
    parser.add_argument('--checkpoint', required=True, help='checkpoint, work directory or exported file')
    parser.add_argument('--config', help='config file or name (default: the config stored in the checkpoint)')
    add_file_options(parser)
    add_detector_options(parser)


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Add positional arguments CHECKPOINT and CONFIG; the latter for checkpoints that do not contain their config."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file or name')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint or exported file')


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the output folder and formats."""
    parser.add_argument('--out-dir', default='outputs', help='output folder (default: outputs/)')
    parser.add_argument(
        '--formats',
        nargs='+',
        choices=RESULT_FORMATS,
        default=['picture', 'json'],
        help='output formats: picture and json write one file per image, coco detections.coco.json, yolo labels/, '
        'csv detections.csv (default: picture json)',
    )


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add options for building and running the detector, and for selecting detections."""
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score of detections (default: 0.3)'
    )
    parser.add_argument(
        '--classes', nargs='+', metavar='CLASS', help='keep only these classes, given by name or index'
    )
    parser.add_argument('--top-k', type=int, metavar='K', help='keep only the top K detections per image')
    parser.add_argument(
        '--batch-size', type=int, default=1, help='maximum batch size, for images of equal size (default: 1)'
    )
    parser.add_argument('--tile', type=int, metavar='PX', help='split larger images into tiles of this size')
    parser.add_argument(
        '--tile-overlap', type=int, metavar='PX', help='overlap of tiles (default: a fifth of their size)'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if available)')
    parser.add_argument(
        '--prepare',
        choices=PRECISIONS,
        help='optimise the model for faster inference (folded norms, packed weights)',
    )
    add_cfg_options(parser)
    parser.add_argument('--allow-partial', action='store_true', help='load only the matching weights')


def run(args: argparse.Namespace) -> None:
    """Detect, write the results, and print a summary."""
    from ddetr.apis import PredictOptions, predict_files
    from ddetr.apis.sources import find_sources

    find_sources(args.inputs)  # fail early, before building the model
    options = PredictOptions(**{key: getattr(args, key) for key in PredictOptions._fields})
    report(predict_files(build_inferencer(args), args.inputs, options), args.out_dir)


def build_inferencer(args: argparse.Namespace) -> 'DetInferencer':
    """Build the detector from command-line arguments."""
    from ddetr.apis import DetInferencer, Tiling

    tiling = None
    if args.tile is not None:
        overlap = args.tile // 5 if args.tile_overlap is None else args.tile_overlap
        tiling = Tiling(args.tile, overlap, min_score=min(args.score_thr, 0.05), batch_size=args.batch_size)
    elif args.tile_overlap is not None:
        raise InputError('--tile-overlap needs --tile, the size of the tiles.')
    detector = DetInferencer(
        args.config, args.checkpoint, args.device, args.cfg_options, args.allow_partial, tiling
    )
    if args.prepare is not None:
        detector.prepare(args.prepare)
    return detector


def report(summary: 'Summary', place: str) -> None:
    """Print a summary of the results written to `place`. Raise InputError if any input could not be read."""
    if summary.images or summary.frames:
        print(f'{summary}: {place}', flush=True)
    if summary.failures:
        shown = ''.join(f'  {sentence}\n' for sentence in summary.failures[:SHOWN])
        more = f'  and {len(summary.failures) - SHOWN} more\n' if len(summary.failures) > SHOWN else ''
        print(f'skipped:\n{shown}{more}', end='', flush=True)
        raise InputError(
            f'{len(summary.failures)} inputs were skipped (listed above); all others were processed.'
        )
