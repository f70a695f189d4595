"""Convert weights between projects.

IN is a checkpoint file or folder in any supported format; `ddetr identify IN` detects it. OUT is a `.pth` or
`.safetensors` file or, for Hugging Face, a folder for `from_pretrained`.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddetr.utils.errors import CheckpointError
from ddetr.utils.names import PROJECTS

if TYPE_CHECKING:
    from ddetr.weights import WeightsFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('source', metavar='IN', help='checkpoint, or Hugging Face folder')
    parser.add_argument('out', metavar='OUT', help='output file; a folder for hf')
    parser.add_argument('--to', choices=PROJECTS, required=True, help='output format')
    parser.add_argument(
        '--config',
        help='config of the weights, used to check that they are complete and to write settings that weights do not '
        'determine to config.json (DC5, heads, points, proposals); default: those of the published models',
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='convert even if tensors are missing or unexpected'
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and print a summary."""
    from ddetr.analysis.building import build_detector
    from ddetr.engine.config import load_config
    from ddetr.weights import load_weights, read_checkpoint, read_weights, write_weights

    if Path(args.out).resolve() == Path(args.source).resolve():
        raise CheckpointError(f'{args.out} would overwrite the input: choose another OUT.')
    content, model_cfg, model = read_checkpoint(args.source), None, None
    if args.config:
        cfg = load_config(args.config)
        model_cfg, model = cfg.model, build_detector(cfg)
        load_weights(model, args.source, content, allow_partial=args.allow_partial)
    file = read_weights(args.source, content, model)
    faults = list_faults(file)
    if faults and not args.allow_partial:
        raise CheckpointError(f'{args.source}: {faults}. To convert the rest, add --allow-partial.')
    written = write_weights(args.out, file, args.to, model_cfg, args.allow_partial)
    notes = [*written.notes, *([faults] if faults else [])]
    if args.to == 'hf' and not args.config:
        notes.append('config.json assumes 8 heads, 4 points and no DC5: pass --config if this is wrong')
    print(
        f'{args.source} ({file.weights.title}: {file.weights.layout}) -> {args.out} ({written.title}): '
        f'{len(file.weights.state)} tensors read, {len(written.state)} written'
        + ''.join(f'; {note}' for note in notes)
    )


def list_faults(file: 'WeightsFile') -> str:
    """List unexpected and missing tensors, as far as they can be determined without a model; '' if none."""
    faults = []
    if file.weights.unexpected:
        faults.append(
            f'{len(file.weights.unexpected)} unexpected tensors: {", ".join(file.weights.unexpected)}'
        )
    if missing := file.weights.missing_in_layers():
        faults.append(f'{len(missing)} missing tensors: {", ".join(missing)}')
    return '; '.join(faults)
