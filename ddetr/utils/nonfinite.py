"""What a training step says of numbers that are not finite, without leaving the other processes waiting for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_NOTES: ContextVar[list[str] | None] = ContextVar('notes of a watched step', default=None)


@contextmanager
def watched(notes: list[str] | None) -> Iterator[None]:
    """Let `raise_or_note` add to `notes`; with None it raises."""
    token = _NOTES.set(notes)
    try:
        yield
    finally:
        _NOTES.reset(token)


def raise_or_note(fault: str) -> None:
    """Raise a ValueError; in a watched step note the fault instead, and go on.

    A process that raised between forward and backward pass would leave the others in their exchange of gradients.
    Whoever watches the step stops all of them after it, and does not let it change the weights.
    """
    notes = _NOTES.get()
    if notes is None:
        raise ValueError(fault)
    notes.append(fault)
