"""Detect objects in images and videos.

INPUT is an image, a folder, a pattern in quotes ('photos/**/*.jpg'), a video, an address, or the number of a camera
(ended by Ctrl-C); several may be given. CHECKPOINT may be a work directory, or a file that `ddetr export` wrote. Each
image gets a picture with boxes and a JSON file, each video a video and a file with one line of JSON a frame. An image
that cannot be read is named at the end, and the command then ends with status 2; all the others are done.
"""

import argparse
from typing import TYPE_CHECKING

from ddetr.utils.cli import add_cfg_options
from ddetr.utils.errors import InputError
from ddetr.utils.names import RESULT_FORMATS

if TYPE_CHECKING:
    from ddetr.apis import DetInferencer
    from ddetr.apis.prediction import Summary
SHOWN = 10  # failures that are named one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('inputs', metavar='INPUT', nargs='+', help='images, folders, patterns, videos, ...')
    parser.add_argument('--checkpoint', required=True, help='checkpoint, work directory, or exported file')
    parser.add_argument(
        '--config', help='config file, or name of one; by default what the checkpoint carries'
    )
    add_file_options(parser)
    add_detector_options(parser)


def add_detector_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare CONFIG and CHECKPOINT as positional arguments, the former for checkpoints that do not carry theirs."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file, or name of one')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint, or exported file')


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Declare where results of images are written, and as what."""
    parser.add_argument('--out-dir', default='outputs', help='where to write; by default outputs/')
    parser.add_argument(
        '--formats',
        nargs='+',
        choices=RESULT_FORMATS,
        default=['picture', 'json'],
        help='what to write of images: a picture and a JSON file of each; for all of them detections.coco.json, '
        "labels/ in YOLO's format, detections.csv",
    )


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Declare how the detector is built and run, and which of its detections count."""
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score to draw and write')
    parser.add_argument('--classes', nargs='+', metavar='CLASS', help='only these, by name or number')
    parser.add_argument('--top-k', type=int, metavar='K', help='only the K best of an image')
    parser.add_argument('--batch-size', type=int, default=1, help='images of equal size detected together')
    parser.add_argument('--tile', type=int, metavar='PX', help='cut larger images into tiles of this side')
    parser.add_argument('--tile-overlap', type=int, metavar='PX', help='of tiles; by default a fifth')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; by default a GPU if there is one')
    add_cfg_options(parser)
    parser.add_argument('--allow-partial', action='store_true', help='take of the checkpoint what fits')


def run(args: argparse.Namespace) -> None:
    """Detect, write, and say what was written and what could not be read."""
    from ddetr.apis import PredictOptions, predict_files
    from ddetr.apis.sources import find_sources

    find_sources(args.inputs)  # says what is missing before the model is built
    options = PredictOptions(**{key: getattr(args, key) for key in PredictOptions._fields})
    report(predict_files(build_inferencer(args), args.inputs, options), args.out_dir)


def build_inferencer(args: argparse.Namespace) -> 'DetInferencer':
    """The detector that arguments ask for."""
    from ddetr.apis import DetInferencer, Tiling

    tiling = None
    if args.tile is not None:
        overlap = args.tile // 5 if args.tile_overlap is None else args.tile_overlap
        tiling = Tiling(args.tile, overlap, min_score=min(args.score_thr, 0.05), batch_size=args.batch_size)
    elif args.tile_overlap is not None:
        raise InputError('--tile-overlap needs --tile, the side of the tiles.')
    return DetInferencer(
        args.config, args.checkpoint, args.device, args.cfg_options, args.allow_partial, tiling
    )


def report(summary: 'Summary', place: str) -> None:
    """Say what was found and written to `place`. InputError that names what could not be read, if anything."""
    if summary.images or summary.frames:
        print(f'{summary}: {place}', flush=True)
    if summary.failures:
        shown = ''.join(f'  {sentence}\n' for sentence in summary.failures[:SHOWN])
        more = f'  and {len(summary.failures) - SHOWN} more\n' if len(summary.failures) > SHOWN else ''
        print(f'left out:\n{shown}{more}', end='', flush=True)
        raise InputError(
            f'{len(summary.failures)} of the inputs are left out, as listed; all others are done.'
        )
