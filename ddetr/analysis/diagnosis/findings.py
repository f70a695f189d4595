"""What the checks of a diagnosis report."""

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    """How surely a finding keeps a detector from learning; the lower comes first."""

    CAUSE = 0
    NOTE = 1  # worth knowing; no reason for an AP of 0 by itself


class Finding(NamedTuple):
    """One fault of a set-up."""

    name: str  # of the cause, one of `CAUSES`
    title: str  # the cause in one sentence
    evidence: str  # what was measured
    cure: str  # what to change
    severity: Severity = Severity.CAUSE


class Measured(NamedTuple):
    """Result of one check."""

    facts: tuple[str, ...]  # what was measured, also where nothing is wrong
    findings: tuple[Finding, ...] = ()


class Check(NamedTuple):
    """A check and its name in the report."""

    title: str
    run: Callable[..., Measured]  # takes the `Subject`


class Unchecked(Exception):  # noqa: N818 (no error: the report says why)
    """A check has nothing to look at in this set-up; the message says why."""
