"""What the command lines share."""

import sys
from collections.abc import Callable

import torch.distributed

from .errors import InputError


def run_cli(main: Callable[[], None]) -> None:
    """Run a command. What the user's input causes is printed as its one sentence, anything else as a traceback.

    Exit status 2 for the former, as argparse's own errors have.
    """
    try:
        main()
        leave_process_group()
    except InputError as error:
        # a DataLoader's worker sends its error as the text of a traceback, which ends in `InputError: message`
        sentence = str(error).strip().split('\n')[-1].removeprefix(f'{_qualified(error)}: ')
        print(f'error: {sentence}', file=sys.stderr)
        sys.exit(2)


def leave_process_group() -> None:
    """Part from the other processes together.

    One that exits while gloo's threads still run may be aborted (pytorch/pytorch issue 190489).
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _qualified(error: InputError) -> str:
    return f'{type(error).__module__}.{type(error).__qualname__}'
