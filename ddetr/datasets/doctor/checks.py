"""Registry of checks. A check is a function that yields examples of one fault; `@check` registers it."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .evidence import Evidence
from .faults import SEVERITIES, Example, Fault, Severity, collect

Find = Callable[[Evidence], Iterable[Example]]


class Check(NamedTuple):
    """A kind of fault: its name, its severity, and the function that finds it."""

    name: str
    severity: Severity
    find: Find
    consequence: str
    cure: str
    fix: str  # what `--fix` does; '' if it needs a human decision
    spoils: bool  # a large number of these makes training useless


CHECKS: list[Check] = []


def check(
    name: str, severity: Severity, *, consequence: str, cure: str, fix: str = '', spoils: bool = False
) -> Callable[[Find], Find]:
    """Register a function that yields one `Example` per occurrence of the fault `name`."""

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
