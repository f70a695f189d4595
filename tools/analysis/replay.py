"""Replay a non-finite training step from a capsule written by the black box.

    python tools/analysis/replay.py work_dirs/run/nonfinite_iter_1201_rank_0.capsule

Prints the losses then and now, and the first module with a non-finite output or gradient. Exit status 0 if the failure
is reproduced, 1 if the step is finite. Modules in `custom_imports` of the capsule's config are imported.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from ddetr.analysis.building import build_detector
from ddetr.engine.capsule import Capsule, read_capsule, versions
from ddetr.engine.step_trace import Finding, run_again
from ddetr.utils.cli import run_cli
from ddetr.utils.tables import render_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('capsule', help='file written by the black box')
    parser.add_argument('--device', help='device (default: a GPU if available)')
    parser.add_argument(
        '--trust', action='store_true', help='load objects of any type; use only for your own files'
    )
    args = parser.parse_args()
    capsule = read_capsule(args.capsule, args.trust)
    print(f'iteration {capsule.iteration}: {capsule.report}\n')
    here = versions()
    for name, version in capsule.versions.items():
        if here.get(name) != version:
            print(f'{name} {here.get(name)} is installed, the capsule was written with {version}')
    found = replay(capsule, args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    rows = [
        [name, f'{value:g}', f'{found.losses.get(name, float("nan")):g}']
        for name, value in capsule.losses.items()
    ]
    print(render_table(['loss', 'then', 'now'], rows, 'text'))
    if not found.place:
        print('\nthe step is finite now')
        sys.exit(1)
    print(f'\nfirst module: {found.place}, {found.what}')


def replay(capsule: Capsule, device: str) -> Finding:
    """Build the model of a capsule and rerun its step."""
    if capsule.config_file:
        sys.path.append(str(Path(capsule.config_file).resolve().parent))
    cfg = Config(capsule.config)
    if imports := cfg.get('custom_imports'):
        import_modules_from_strings(**imports)
    model = build_detector(cfg)
    model.load_state_dict(capsule.weights)
    return run_again(model.to(device).train(), capsule.step)


if __name__ == '__main__':
    run_cli(main)
