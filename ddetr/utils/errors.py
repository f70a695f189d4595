"""User errors, printed by the command-line tools without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input. The message names the file, key or number and says how to fix it."""


class ConfigError(InputError):
    """Invalid config file or override."""


class BoxUnitsError(InputError):
    """Boxes whose units or coordinate order do not match the format."""


class CheckpointError(InputError):
    """Invalid checkpoint."""


class TrainingInterrupted(Exception):  # noqa: N818 (a requested stop is not an error)
    """Training was stopped by a signal after saving a checkpoint to resume from."""

    EXIT_CODE = 75  # "temporary failure, try again" in BSD's sysexits.h


class NonFiniteError(Exception):
    """Training was stopped by a non-finite loss or gradient, before the weights were updated."""

    EXIT_CODE = 3


def did_you_mean(name: str, known: Iterable[str], otherwise: str = '.') -> str:
    """End an error message about an unknown name with the closest known names, or with `otherwise`."""
    near = difflib.get_close_matches(name, set(known), n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(near)}?' if near else otherwise


def first_line(error: BaseException) -> str:
    """First line of an error message, or the error's type if the message is empty."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (str(text).strip() or type(error).__name__).split('\n')[0]
