"""Convert weights between projects.

IN is a file or folder of any format that ddetr reads; `ddetr identify IN` says which one it is. OUT is a `.pth` or
`.safetensors` file; for Hugging Face a folder, which `from_pretrained` loads.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ddetr.utils.errors import CheckpointError
from ddetr.utils.names import PROJECTS

if TYPE_CHECKING:
    from ddetr.weights import WeightsFile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('source', metavar='IN', help='checkpoint, or folder from Hugging Face')
    parser.add_argument('out', metavar='OUT', help='file to write; for hf a folder')
    parser.add_argument('--to', choices=PROJECTS, required=True, help='format to write')
    parser.add_argument(
        '--config',
        help='the config that the weights belong to: to check that they are complete, and to tell Hugging Face what '
        'weights do not show (DC5, heads, points, proposals); without it the published ones are meant',
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='go on where names are missing or left over'
    )


def run(args: argparse.Namespace) -> None:
    """Convert, and print what was read and written."""
    from ddetr.analysis.building import build_detector
    from ddetr.engine.config import load_config
    from ddetr.weights import load_weights, read_checkpoint, read_weights, write_weights

    if Path(args.out).resolve() == Path(args.source).resolve():
        raise CheckpointError(f'{args.out} would overwrite what is read: name another OUT.')
    content, model_cfg, model = read_checkpoint(args.source), None, None
    if args.config:
        cfg = load_config(args.config)
        model_cfg, model = cfg.model, build_detector(cfg)
        load_weights(model, args.source, content, allow_partial=args.allow_partial)
    file = read_weights(args.source, content, model)
    faults = list_faults(file)
    if faults and not args.allow_partial:
        raise CheckpointError(f'{args.source}: {faults}; to convert the rest, give --allow-partial.')
    written = write_weights(args.out, file, args.to, model_cfg, args.allow_partial)
    notes = [*written.notes, *([faults] if faults else [])]
    if args.to == 'hf' and not args.config:
        notes.append('config.json says 8 heads, 4 points and no DC5: give --config if that is wrong')
    print(
        f'{args.source} ({file.weights.title}: {file.weights.layout}) -> {args.out} ({written.title}): '
        f'{len(file.weights.state)} tensors read, {len(written.state)} written'
        + ''.join(f'; {note}' for note in notes)
    )


def list_faults(file: 'WeightsFile') -> str:
    """Names left over or missing, as far as they show without a model; '' if none."""
    faults = []
    if file.weights.unexpected:
        faults.append(f'{len(file.weights.unexpected)} names left over: {", ".join(file.weights.unexpected)}')
    if missing := file.weights.missing_in_layers():
        faults.append(f'{len(missing)} names missing: {", ".join(missing)}')
    return '; '.join(faults)
