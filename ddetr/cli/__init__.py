"""The command `ddetr`. A subcommand is one module here and one entry in COMMANDS; tools/ and demo/ run the same ones.

A module's docstring is its help; it has `add_arguments(parser)` and `run(args)`. It imports PyTorch in `run` only, so
that help and lists of configs appear at once.
"""

import argparse
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ddetr import __version__
from ddetr.utils.cli import run_cli

from . import check, configs, convert, convert_data, export, identify, predict, test, train

COMMANDS = (check, train, test, predict, configs, convert, convert_data, identify, export)


class Parser(argparse.ArgumentParser):
    """Takes options between positional arguments, also where the first of these may be left out."""

    _intermixing = False

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """argparse's, and its form for intermixed arguments, which calls this again."""
        if self._intermixing:
            return super().parse_known_args(*args, **kwargs)
        self._intermixing = True
        try:
            return self.parse_known_intermixed_args(*args, **kwargs)
        finally:
            self._intermixing = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `ddetr` with the process's arguments, or these."""
    parser = argparse.ArgumentParser(
        prog='ddetr', description='Train, evaluate and use detectors of the Deformable family.'
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
    """Run one subcommand as a program of its own, as the files in tools/ and demo/ do."""
    parser = Parser()
    fill(parser, command)
    args = parser.parse_args()
    args.run(args)


def fill(parser: argparse.ArgumentParser, command: ModuleType) -> None:
    """Give a parser a subcommand's help, arguments and function."""
    parser.description = command.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)
