"""Export a detector to another runtime, and verify its detections there.

CONFIG defaults to the config stored in the training checkpoint. The exported model is run on images in its runtime and
compared with PyTorch; a difference above the bounds is an error, and nothing is written. docs/deployment.md describes
the formats and how to run exported files.
"""

import argparse
from typing import TYPE_CHECKING

from ddetr.utils.cli import add_cfg_options

if TYPE_CHECKING:
    from ddetr.apis.exporting import APs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file or name')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint or work directory')
    parser.add_argument(
        '--to', required=True, metavar='TARGET', help='onnx, torch-export, aoti, openvino or tensorrt'
    )
    parser.add_argument('--out', metavar='FILE', help='output file (default: next to the checkpoint)')
    for name in ('batch', 'height', 'width'):
        parser.add_argument(f'--{name}', type=int, metavar='N', help=f'fixed {name} (default: dynamic)')
    parser.add_argument(
        '--with-preprocessing', action='store_true', help='take uint8 images and normalise in the graph'
    )
    parser.add_argument('--opset', type=int, default=18, help='ONNX opset, 18 to 22')
    parser.add_argument(
        '--op',
        default='gridsample',
        help='deformable attention in ONNX: gridsample, gather, node or tensorrt',
    )
    parser.add_argument('--images', nargs='+', default=(), metavar='IMAGE', help='verification images')
    parser.add_argument('--data', metavar='DIR_OR_CONFIG', help='dataset on which to compare AP with PyTorch')
    parser.add_argument(
        '--precision', default='fp32', metavar='NAME', help='fp32, fp16 or int8, for onnx and openvino'
    )
    parser.add_argument(
        '--calibration',
        metavar='DIR',
        help="calibration images for int8 (default: the config's training data)",
    )
    for name, what in (('score', 'scores'), ('box', 'boxes, in pixels'), ('ap', 'metrics, with --data')):
        parser.add_argument(
            f'--max-{name}-diff',
            type=float,
            help=f'maximum difference of {what} (default: depends on the precision)',
        )
    parser.add_argument('--min-score', type=float, help='minimum score of detections to compare')
    parser.add_argument('--allow-partial', action='store_true', help='load only the matching weights')
    add_cfg_options(parser)


def run(args: argparse.Namespace) -> None:
    """Export, and print the result of the verification."""
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
    """Table of the metrics in PyTorch and after the export."""
    from ddetr.utils.tables import render_table

    rows = [[name, f'{value:.4f}', f'{aps.exported[name]:.4f}'] for name, value in aps.pytorch.items()]
    return render_table(['metric', 'PyTorch', 'exported'], rows, 'text')
