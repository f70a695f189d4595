"""User errors, which the command lines print without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input. The message names the file, key or number, and says what to do."""


class ConfigError(InputError):
    """Invalid config file or override."""


class BoxUnitsError(InputError):
    """Boxes in the wrong unit or coordinate order for their format."""


class CheckpointError(InputError):
    """Invalid checkpoint."""


class TrainingInterrupted(Exception):  # noqa: N818 (what was asked for is no error)
    """Training was stopped by a signal and has saved a checkpoint to resume from."""

    EXIT_CODE = 75  # "temporary failure, try again" in BSD's sysexits.h


class NonFiniteError(Exception):
    """Training was stopped because of a non-finite loss or gradient, before the weights changed."""

    EXIT_CODE = 3


def did_you_mean(name: str, known: Iterable[str], otherwise: str = '.') -> str:
    """End of an error message about an unknown name: the closest known names, else `otherwise`."""
    near = difflib.get_close_matches(name, set(known), n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(near)}?' if near else otherwise


def first_line(error: BaseException) -> str:
    """First line of an error message; the type of the error if it is empty."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (str(text).strip() or type(error).__name__).split('\n')[0]
