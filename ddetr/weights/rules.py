"""Bidirectional rename tables between parameter names of other projects and of ddetr.

A table is a sequence of `Rule`s, each a pair of name templates. In a template, `{i}` and `{j}` match a number and `{p}`
the rest of the name. `{qkv}` (other project only) matches `q`, `k` and `v`: three tensors that correspond to one
ddetr tensor, stacked along the first axis, as in `torch.nn.MultiheadAttention`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]

_PLACEHOLDERS = {'{i}': r'(?P<i>\d+)', '{j}': r'(?P<j>\d+)', '{p}': r'(?P<p>.+)', '{qkv}': '(?P<qkv>[qkv])'}


class Rule(NamedTuple):
    """One line of a table. If two rules match a tensor, the earlier one applies."""

    theirs: str
    ours: str  # '' for tensors that ddetr does not use
    written: bool = True  # False: only for reading, a name used in some of their files


class Renamed(NamedTuple):
    """Renamed state dict, and the names that could not be converted."""

    state: State
    unexpected: tuple[str, ...]  # old names that match no rule
    dropped: tuple[str, ...]  # old names that the table drops on purpose
    differing: tuple[str, ...]  # old names of copies that differ from the tensor that was used


def to_ours(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> Renamed:
    """Rename another project's tensors. An incomplete q, k, v triple counts as unexpected."""
    # our name -> part ('' or q, k, v) -> rule's rank, their name
    found: dict[str, dict[str, tuple[int, str]]] = {}
    unexpected, dropped, differing = [], [], []
    for theirs in state:
        matches = ((rank, _pattern(rule.theirs).fullmatch(theirs)) for rank, rule in enumerate(rules))
        rank, match = next(((rank, match) for rank, match in matches if match), (0, None))
        if match is None:
            unexpected.append(theirs)
            continue
        groups = match.groupdict()
        if not rules[rank].ours:
            dropped.append(theirs)
            continue
        parts = found.setdefault(rules[rank].ours.format(**groups), {})
        part = groups.get('qkv', '')
        parts[part], *copies = sorted({(rank, theirs), parts.get(part, (rank, theirs))})
        differing += [name for _, name in copies if not same(state[parts[part][1]], state[name])]
    renamed: State = {}
    for ours, parts in found.items():
        if '' in parts:
            renamed[ours] = state[parts[''][1]]
        elif set(parts) == set('qkv'):
            renamed[ours] = torch.cat([state[parts[part][1]] for part in 'qkv'])
        else:
            unexpected += [theirs for _, theirs in parts.values()]
    return Renamed(renamed, tuple(unexpected), tuple(dropped), tuple(differing))


def to_theirs(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> Renamed:
    """Rename ddetr tensors to the names of another project, including its duplicates."""
    renamed: State = {}
    unexpected = []
    for ours, tensor in state.items():
        templates = [
            (rule.theirs, match.groupdict())
            for rule in rules
            if rule.written and rule.ours and (match := _pattern(rule.ours).fullmatch(ours))
        ]
        if not templates:
            unexpected.append(ours)
        for template, groups in templates:
            if '{qkv}' in template:
                for part, piece in zip('qkv', tensor.chunk(3), strict=True):
                    renamed[template.format(qkv=part, **groups)] = piece
            else:
                renamed[template.format(**groups)] = tensor
    return Renamed(renamed, tuple(unexpected), (), ())


def within(theirs: str, ours: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Prefix the rules of a module with its position in the model, `theirs` and `ours`."""
    return tuple(Rule(theirs + rule.theirs, ours + rule.ours, rule.written) for rule in rules)


def table(theirs: str, ours: str, modules: Mapping[str, str], written: bool = True) -> tuple[Rule, ...]:
    """Rules for all tensors of modules, `{their name: our name}`, with the prefixes `theirs` and `ours`."""
    return tuple(Rule(f'{theirs}{a}.{{p}}', f'{ours}{b}.{{p}}', written) for a, b in modules.items())


def matches_any(name: str, templates: Sequence[str]) -> bool:
    """Whether `name` matches one of the templates."""
    return any(_pattern(template).fullmatch(name) for template in templates)


@cache
def _pattern(template: str) -> re.Pattern:
    pieces = re.split(r'(\{\w+\})', template)
    return re.compile(''.join(_PLACEHOLDERS.get(piece) or re.escape(piece) for piece in pieces))


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have equal values."""
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))
