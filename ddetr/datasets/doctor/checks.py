"""The list of checks. A check is a function from the evidence to examples of one fault; `@check` lists it."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .evidence import Evidence
from .faults import SEVERITIES, Example, Fault, Severity, collect

Find = Callable[[Evidence], Iterable[Example]]


class Check(NamedTuple):
    """One fault: what it is called, how bad it is, and how it is found."""

    name: str
    severity: Severity
    find: Find
    consequence: str
    cure: str
    fix: str  # what `--fix` does; '' where a person has to decide
    spoils: bool  # many of these make a training worthless


CHECKS: list[Check] = []


def check(
    name: str, severity: Severity, *, consequence: str, cure: str, fix: str = '', spoils: bool = False
) -> Callable[[Find], Find]:
    """List a function that yields one `Example` for each occurrence of the fault `name`."""

    def add(find: Find) -> Find:
        CHECKS.append(Check(name, severity, find, consequence, cure, fix, spoils))
        return find

    return add


def find_faults(evidence: Evidence) -> Iterator[Fault]:
    """Run all checks, errors first."""
    for severity in SEVERITIES:
        for each in CHECKS:
            if each.severity == severity:
                count, worst, paths = collect(each.find(evidence))
                if count:
                    words = (each.consequence, each.cure, each.fix)
                    yield Fault(each.name, severity, count, worst, *words, paths, each.spoils)
