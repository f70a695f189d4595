"""The errors that a person's input causes: the command lines print their sentence without a traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What was given cannot be used. The message says which file, key or number, and what to do."""


class ConfigError(InputError):
    """A config file or an override of it."""


class BoxUnitsError(InputError):
    """Boxes in other units or another order than their format says."""


class CheckpointError(InputError):
    """A weight file or checkpoint."""


class TrainingInterrupted(Exception):  # noqa: N818 (what was asked for is no error)
    """A training was asked to end by a signal, and has saved a checkpoint to go on from."""

    EXIT_CODE = 75  # "temporary failure, try again" in BSD's sysexits.h


class NonFiniteError(Exception):
    """A training whose loss or gradients are NaN or infinite has been stopped before its weights were."""

    EXIT_CODE = 3


def did_you_mean(name: str, known: Iterable[str], otherwise: str = '.') -> str:
    """The end of a sentence about an unknown name: the nearest known ones, or else `otherwise`."""
    near = difflib.get_close_matches(name, set(known), n=3, cutoff=0.6)
    return f'; did you mean {" or ".join(near)}?' if near else otherwise


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (str(text).strip() or type(error).__name__).split('\n')[0]
