"""Run a training step again that was not finite, from the capsule that the black box has written.

    python tools/analysis/replay.py work_dirs/run/nonfinite_iter_1201_rank_0.capsule

Prints the losses then and now, and the first module whose output or gradient is not finite. Exit status 0 if the step
is not finite again, 1 if it is finite. The capsule's config may name modules to import (`custom_imports`).
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
    parser.add_argument('capsule', help='file that the black box has written')
    parser.add_argument('--device', help='by default the GPU, if there is one')
    parser.add_argument('--trust', action='store_true', help='load objects of any type: only your own files')
    args = parser.parse_args()
    capsule = read_capsule(args.capsule, args.trust)
    print(f'iteration {capsule.iteration}: {capsule.report}\n')
    here = versions()
    for name, version in capsule.versions.items():
        if here.get(name) != version:
            print(f'{name} {here.get(name)} is installed, it was {version}')
    found = replay(capsule, args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    rows = [
        [name, f'{value:g}', f'{found.losses.get(name, float("nan")):g}']
        for name, value in capsule.losses.items()
    ]
    print(render_table(['loss', 'then', 'now'], rows, 'text'))
    if not found.place:
        print('\nall is finite now')
        sys.exit(1)
    print(f'\nfirst module: {found.place}, {found.what}')


def replay(capsule: Capsule, device: str) -> Finding:
    """Build the model of a capsule and run its step."""
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
