"""Prepare a training checkpoint for publication: `python tools/converters/publish_model.py IN OUT`.

Keeps only the weights and class names, in a `.safetensors` file, which cannot contain code. The first digits of its
SHA-256 are appended to the name, so that torch can verify downloads: `OUT.safetensors` becomes
`OUT-1a2b3c4d.safetensors`.
"""

import argparse
import hashlib
from pathlib import Path

import ddetr
from ddetr.utils import CheckpointError
from ddetr.utils.cli import run_cli
from ddetr.weights import read_weights
from ddetr.weights.files import meta_of, save_weights


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN', help='checkpoint in any supported format')
    parser.add_argument(
        'out', metavar='OUT', help='.safetensors output file; the hash is appended to its name'
    )
    args = parser.parse_args()
    print(publish(Path(args.source), Path(args.out)))


def publish(source: Path, out: Path) -> Path:
    """Write the weights of `source`, and return the path with the hash."""
    if out.suffix != '.safetensors':
        raise CheckpointError(f'{out}: use a .safetensors file.')
    file = read_weights(source, strict=False)
    if file.weights.unexpected:
        raise CheckpointError(f'{source} has unexpected tensors: {", ".join(file.weights.unexpected)}.')
    meta = {**meta_of(file), 'format': 'pt', 'ddetr_version': ddetr.__version__}
    meta |= {key: str(file.meta[key]) for key in ('epoch', 'iter') if key in file.meta}
    unnamed = out.with_name(f'.{out.name}')
    save_weights(unnamed, file.weights.state, meta)
    digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()
    return unnamed.replace(out.with_name(f'{out.stem}-{digest[:8]}{out.suffix}'))


if __name__ == '__main__':
    run_cli(main)
