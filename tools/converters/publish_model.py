"""Make a training checkpoint ready to give away: `python tools/converters/publish_model.py IN OUT`.

Only the weights and the class names remain, in a `.safetensors` file, which can hold no code. Its name ends in the
first digits of its SHA-256, by which torch checks downloads: `OUT.safetensors` becomes `OUT-1a2b3c4d.safetensors`.
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
    parser.add_argument('source', metavar='IN', help='checkpoint of any format that ddetr reads')
    parser.add_argument('out', metavar='OUT', help='.safetensors file to write; its name gets the hash')
    args = parser.parse_args()
    print(publish(Path(args.source), Path(args.out)))


def publish(source: Path, out: Path) -> Path:
    """Write the weights of `source`, and return the path with the hash in it."""
    if out.suffix != '.safetensors':
        raise CheckpointError(f'{out}: what is published is a .safetensors file, name one.')
    file = read_weights(source, strict=False)
    if file.weights.unexpected:
        raise CheckpointError(f'{source} has names left over: {", ".join(file.weights.unexpected)}.')
    meta = {**meta_of(file), 'format': 'pt', 'ddetr_version': ddetr.__version__}
    meta |= {key: str(file.meta[key]) for key in ('epoch', 'iter') if key in file.meta}
    unnamed = out.with_name(f'.{out.name}')
    save_weights(unnamed, file.weights.state, meta)
    digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()
    return unnamed.replace(out.with_name(f'{out.stem}-{digest[:8]}{out.suffix}'))


if __name__ == '__main__':
    run_cli(main)
