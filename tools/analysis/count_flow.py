"""Count the ddetr files and functions that a training step executes: `python tools/analysis/count_flow.py`.

Traces a detector's `forward(mode='loss')` on two small random images, up to the dict of losses.
"""

import argparse
from pathlib import Path

import ddetr_ops

import ddetr
from ddetr.analysis.batches import random_batch
from ddetr.analysis.building import build_detector
from ddetr.analysis.flow import trace_functions
from ddetr.engine.config import load_config
from ddetr.utils.cli import run_cli

CONFIG = Path(__file__).parents[2] / 'configs/quickstart/deformable-detr-refine-twostage_shapes.py'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', nargs='?', default=CONFIG, help=f'config file (default: {CONFIG.name})')
    args = parser.parse_args()
    cfg = load_config(args.config)
    model = build_detector(cfg)
    batch = model.data_preprocessor(random_batch(2, (96, 128), model.num_classes), training=True)
    for package in (ddetr, ddetr_ops):
        found = trace_functions(lambda: model(**batch, mode='loss'), package)
        for file, functions in found.items():
            print(f'{package.__name__}/{file}: {", ".join(functions)}')
        print(f'{package.__name__}: {len(found)} files, {sum(map(len, found.values()))} functions\n')


if __name__ == '__main__':
    run_cli(main)
