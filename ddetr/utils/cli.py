"""Shared command-line helpers."""

import argparse
import ast
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError, NonFiniteError, TrainingInterrupted
from .literals import literal_value
from .machines import end_with_launcher

INTERRUPTED_NOTE = (
    'INTERRUPTED_NOTE'  # environment variable: path of a file to create when training is interrupted
)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-options`: KEY=VALUE pairs with dotted keys that override the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_ConfigOptions,
        default={},
        metavar='KEY=VALUE',
        help='override the config: model.num_queries=100 custom_hooks="[dict(type=\'EMAHook\')]" ...',
    )


def add_launcher(parser: argparse.ArgumentParser, see: str) -> None:
    """Add the options for distributed runs: `--launcher` and torchrun's `--local-rank`."""
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help=see)
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


class _ConfigOptions(argparse.Action):
    """Extend mmengine's `DictAction` (numbers, strings and lists) with Python literals and `dict(...)`."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        options = dict(getattr(namespace, self.dest))
        for pair in values:
            key, equals, text = pair.partition('=')
            try:
                options[key] = _parse(text)
            except (ValueError, TypeError, AssertionError, RecursionError):
                equals = ''
            if not equals:
                parser.error(
                    f'--cfg-options {pair}: write KEY=VALUE, where VALUE is a string, a number or a Python literal.'
                )
        setattr(namespace, self.dest, options)


def _parse(text: str) -> Any:
    if text.startswith(('[', '(', '{', 'dict(', '"', "'")):
        try:
            value = literal_value(ast.parse(text.strip(), mode='eval').body)
        except (ValueError, TypeError, SyntaxError):
            if 'dict(' in text or '{' in text:
                raise ValueError from None
        else:
            if isinstance(value, (list, tuple, dict, str)):
                return value
    from mmengine.config import DictAction

    return DictAction._parse_iterable(text)


def run_cli(main: Callable[[], Any]) -> None:
    """Run a command and print user errors as one message instead of a traceback.

    The exit status is 2 for user errors, as in argparse, 75 if a signal interrupted training (continue with
    `--resume`), and 3 if a loss or gradient was not finite.
    """
    end_with_launcher()
    try:
        main()
        _part_together()
    except TrainingInterrupted as end:
        print(f'{end}; continue with --resume', file=sys.stderr)
        if INTERRUPTED_NOTE in os.environ:
            Path(os.environ[INTERRUPTED_NOTE]).touch()
        _part_together()
        sys.exit(end.EXIT_CODE)
    except NonFiniteError as error:
        print(f'error: {error}', file=sys.stderr)
        _part_together()
        sys.exit(error.EXIT_CODE)
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        where = f' at {error.filename}' if error.filename else ''
        print(
            f'error: {error.strerror}{where}: free disk space, then continue with --resume.', file=sys.stderr
        )
        sys.exit(2)
    except InputError as error:
        # a DataLoader worker passes on its error as a traceback text that ends in `InputError: message`
        kind = f'{type(error).__module__}.{type(error).__qualname__}: '
        sentence = str(error).strip().split('\n')[-1].removeprefix(kind)
        print(f'error: {sentence}', file=sys.stderr)
        sys.exit(2)


def _part_together() -> None:
    """Destroy the process group: exiting while gloo's threads run may abort the process (pytorch issue 190489)."""
    distributed = sys.modules.get(
        'torch.distributed'
    )  # never imported here: single-process commands may not need torch
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
