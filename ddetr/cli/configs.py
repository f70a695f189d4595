"""List the shipped configs, or print or copy one of them.

Without CONFIG, list all names; every command accepts a name instead of a file. With CONFIG, print the complete config
after inheritance and overrides; --copy writes it to a standalone file that can be edited and trained with.
"""

import argparse
from pathlib import Path

from ddetr.utils.cli import add_cfg_options
from ddetr.utils.errors import ConfigError
from ddetr.utils.files import write_atomically
from ddetr.utils.shipped_configs import list_configs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file or name')
    add_cfg_options(parser)
    parser.add_argument('--check', action='store_true', help='also check all types and keys')
    parser.add_argument('--copy', metavar='FILE', help='write the config to this .py file instead')


def run(args: argparse.Namespace) -> None:
    """List, print or copy."""
    if args.config is None:
        if args.copy or args.check or args.cfg_options:
            raise ConfigError('--copy, --check and --cfg-options need a CONFIG.')
        _list()
        return
    from ddetr.engine.config import check_config, load_config, read_keys

    cfg = load_config(args.config, args.cfg_options)
    if args.check:
        check_config(cfg)
    if args.copy is None:
        print(cfg.pretty_text)
        return
    target = Path(args.copy)
    if target.suffix != '.py' or target.exists():
        raise ConfigError(f'--copy {target}: use a .py file that does not exist yet.')
    for variable in (
        set(cfg) - read_keys()
    ):  # already substituted where it was used: editing it would have no effect
        cfg.pop(variable)
    write_atomically(target, lambda unfinished: unfinished.write_text(cfg.pretty_text))
    print(f'{target}: edit it, then `ddetr train {target}`')


def _list() -> None:
    family = None
    for name, path in list_configs().items():
        if path.parent.name != family:
            family = path.parent.name
            print(f'{family}:')
        print(f'  {name}')
