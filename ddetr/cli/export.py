"""Export a detector to another runtime, and prove that it detects the same there.

Without CONFIG, it is the one that the checkpoint was trained with. The file is run in its runtime on images and
compared with PyTorch; a difference above the bounds is an error, and nothing is written. docs/deployment.md has the
formats, and how to run what is written.
"""

import argparse
from typing import TYPE_CHECKING

from ddetr.utils.cli import add_cfg_options

if TYPE_CHECKING:
    from ddetr.apis.exporting import APs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file, or name of one')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint, or work directory')
    parser.add_argument(
        '--to', required=True, metavar='TARGET', help='onnx, torch-export, aoti, openvino or tensorrt'
    )
    parser.add_argument('--out', metavar='FILE', help='file to write; by default beside the checkpoint')
    for name in ('batch', 'height', 'width'):
        parser.add_argument(f'--{name}', type=int, metavar='N', help='fix this size; by default any')
    parser.add_argument(
        '--with-preprocessing', action='store_true', help='uint8 images in; normalise in the graph'
    )
    parser.add_argument('--opset', type=int, default=18, help='of ONNX, 18 to 22')
    parser.add_argument(
        '--op',
        default='gridsample',
        help='deformable attention in ONNX as: gridsample, gather, node, tensorrt',
    )
    parser.add_argument('--images', nargs='+', default=(), metavar='IMAGE', help='for the proof')
    parser.add_argument('--data', metavar='DIR_OR_CONFIG', help='dataset to measure AP on, before and after')
    parser.add_argument(
        '--precision', default='fp32', metavar='NAME', help='fp32, fp16 or int8, of onnx and openvino'
    )
    parser.add_argument(
        '--calibration', metavar='DIR', help="images for int8; by default the config's training data"
    )
    for name, what in (('score', 'scores'), ('box', 'boxes, in pixels'), ('ap', 'metrics, with --data')):
        parser.add_argument(
            f'--max-{name}-diff', type=float, help=f'bound of {what}; by default by precision'
        )
    parser.add_argument('--min-score', type=float, help='lowest score that the proof compares')
    parser.add_argument('--allow-partial', action='store_true', help='take of the checkpoint what fits')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Export, and print the proof."""
    from ddetr.apis.exporting import ExportCommand, export_model
    from ddetr.deployment import Bounds, ExportOptions
    from ddetr.deployment.precision import BOUNDS

    preprocessing = 'inside' if args.with_preprocessing else 'outside'
    options = ExportOptions(
        args.batch, args.height, args.width, preprocessing, args.opset, args.op, args.precision
    )
    given = {'score': args.max_score_diff, 'box_px': args.max_box_diff, 'min_score': args.min_score}
    usual = BOUNDS.get(args.precision, Bounds())
    bounds = usual._replace(**{key: value for key, value in given.items() if value is not None})
    command = ExportCommand(
        args.to, args.out, options, args.images, args.data, bounds, args.max_ap_diff, args.cfg_options,
        args.allow_partial, args.calibration,
    )  # fmt: skip
    exported, aps = export_model(args.config, args.checkpoint, command)
    if exported.proof is not None:
        print(f'proof: {exported.proof}')
    if aps is not None:
        print(ap_table(aps))
    print(f'{exported.info.detector} -> {exported.path} ({args.to})')


def ap_table(aps: 'APs') -> str:
    """Metrics side by side."""
    from ddetr.utils.tables import render_table

    rows = [[name, f'{value:.4f}', f'{aps.exported[name]:.4f}'] for name, value in aps.pytorch.items()]
    return render_table(['metric', 'PyTorch', 'exported'], rows, 'text')
