"""Print a config as it is after its bases and overrides: `python tools/print_config.py configs/...py`."""

import argparse

from mmengine.config import DictAction

from ddetr.engine.config import check_config, load_config
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='override the config: model.num_queries=100 ...',
    )
    parser.add_argument('--check', action='store_true', help='also check that every type and key is known')
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if args.check:
        check_config(cfg)
    print(cfg.pretty_text)


if __name__ == '__main__':
    run_cli(main)
