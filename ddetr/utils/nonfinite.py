"""Report non-finite values in a training step without blocking the other processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_NOTES: ContextVar[list[str] | None] = ContextVar('notes of a watched step', default=None)


@contextmanager
def watched(notes: list[str] | None) -> Iterator[None]:
    """Make `raise_or_note` append to `notes` inside the `with` block; with None it raises."""
    token = _NOTES.set(notes)
    try:
        yield
    finally:
        _NOTES.reset(token)


def raise_or_note(fault: str) -> None:
    """Raise a ValueError or, in a watched step, record the message and continue.

    If one process raised between the forward and backward pass, the others would block in the gradient all-reduce.
    A watched step stops all processes together, before the weights are updated.
    """
    notes = _NOTES.get()
    if notes is None:
        raise ValueError(fault)
    notes.append(fault)
