"""Print a config as it is after its bases and overrides: `python tools/print_config.py configs/...py`."""

import argparse

from ddetr.engine.config import check_config, load_config
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    add_cfg_options(parser)
    parser.add_argument('--check', action='store_true', help='also check that every type and key is known')
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    if args.check:
        check_config(cfg)
    print(cfg.pretty_text)


if __name__ == '__main__':
    run_cli(main)
