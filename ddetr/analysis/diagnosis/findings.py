"""Records returned by the checks."""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    """How likely a finding prevents learning; lower values are reported first."""

    CAUSE = 0
    NOTE = 1  # worth knowing, but not enough to explain an AP of 0


class Finding(NamedTuple):
    """One fault of a training setup."""

    name: str  # cause, one of `CAUSES`
    title: str  # the cause in one sentence
    evidence: str  # what was measured
    cure: str  # what to change
    severity: Severity = Severity.CAUSE


class Measured(NamedTuple):
    """Result of one check."""

    facts: tuple[str, ...]  # measurements, reported even if nothing is wrong
    findings: tuple[Finding, ...] = ()


class Check(NamedTuple):
    """A check and its name in the report."""

    title: str
    run: Callable[..., Measured]  # takes the `Subject`


class Unchecked(Exception):  # noqa: N818 (not an error; the report gives the reason)
    """Raised by a check that does not apply to this setup; the message gives the reason."""
