"""The `ddetr` command. Each subcommand is a module in this package and an entry in COMMANDS.

The scripts in tools/ and demo/ run the same subcommands. A subcommand defines `add_arguments(parser)` and `run(args)`;
its docstring is the help text. PyTorch is imported only in `run`, so that `--help` and `ddetr configs` are fast.
"""

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ddetr import __version__
from ddetr.utils.cli import run_cli

from . import check, configs, convert, convert_data, demo, env, export, identify, predict, test, train, watch

COMMANDS = (
    check, train, watch, test, predict, demo, export, configs, convert, convert_data, identify, env,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """Argument parser that accepts options between positional arguments, even if the first of these is optional."""

    _intermixing = False

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Use argparse's `parse_known_intermixed_args`, which calls this method again."""
        if self._intermixing:
            return super().parse_known_args(*args, **kwargs)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(*args, **kwargs)
        finally:
            self._intermixing = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `ddetr` with `arguments`, or with those of the process if None."""
    parser = argparse.ArgumentParser(
        prog='ddetr', description='Train, evaluate and run detectors of the Deformable DETR family.'
    )
    parser.add_argument('--version', action='version', version=f'ddetr {__version__}')
    subparsers = parser.add_subparsers(metavar='COMMAND', required=True, parser_class=Parser)
    for command in COMMANDS:
        summary = (command.__doc__ or '').split('\n')[0]
        name = command.__name__.rpartition('.')[2].replace('_', '-')
        fill(subparsers.add_parser(name, help=summary), command)
    args = parser.parse_args(arguments)
    run_cli(lambda: args.run(args))


def run_tool(command: ModuleType) -> None:
    """Run one subcommand as a separate program, as the scripts in tools/ and demo/ do."""
    parser = Parser()
    fill(parser, command)
    args = parser.parse_args()
    args.run(args)


def fill(parser: argparse.ArgumentParser, command: ModuleType) -> None:
    """Add a subcommand's help, arguments and function to a parser."""
    parser.description = command.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)
