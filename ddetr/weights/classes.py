"""Convert class rows: the original projects index COCO classes by category id, with gaps; ddetr from 0 to 79.

Class rows are the rows of classification layers: `(classes, C)` weights and `(classes,)` biases.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from ddetr.utils.coco_classes import COCO_IDS, NUM_COCO_IDS

from .rules import State, matches_any

# Logit of non-existent classes: their sigmoid or softmax probability is 0 in float32.
NEVER_FIRES = -1e4

# Position of the "no object" row in another project. In ddetr it is the last row, if there is one.
Background = Literal['none', 'first', 'last']

EMPTY: Mapping[str, Tensor] = MappingProxyType({})


class ClassRows(NamedTuple):
    """Tensors with class rows."""

    template: str  # template of their ddetr names; see rules.py
    background: bool = False  # whether there is a row for "no object"
    per_class: int = 1  # rows per class: 4 for class-specific boxes
    spare: int = 0  # number of unused last rows in other projects' tensors, which ddetr does not have


def rows_of(name: str, class_rows: Sequence[ClassRows]) -> ClassRows | None:
    """Entry of `class_rows` that matches a tensor name."""
    return next((rows for rows in class_rows if matches_any(name, [rows.template])), None)


def num_class_rows(state: Mapping[str, Tensor], class_rows: Sequence[ClassRows]) -> int:
    """Number of class rows, including "no object"; 0 without classification layers."""
    found = ((rows_of(name, class_rows), tensor) for name, tensor in state.items())
    return next((len(t) for rows, t in found if rows and rows.per_class == 1 and not rows.spare), 0)


def take_class_rows(
    state: State, class_rows: Sequence[ClassRows], background: Background, coco_ids: bool, proposals: str
) -> tuple[State, State]:
    """Reorder another project's class rows to ddetr's order, with the background last.

    Args:
        state: Tensors with ddetr names.
        class_rows: Description of the tensors with class rows.
        background: Position of the "no object" row in the other project.
        coco_ids: Whether to interpret rows as COCO category ids if their number matches, and keep those of the 80
            categories. Any other number of rows is kept.
        proposals: Prefix of the branch whose row 0 means "any object". It stays row 0 and displaces the row of the
            first category.

    Returns:
        The state and, for `put_class_rows`, the displaced rows by name: the first category of the proposals, and
        unused ids.
    """
    result, aside = dict(state), {}
    for name, tensor in state.items():
        if not (spec := rows_of(name, class_rows)):
            continue
        classes = tensor.unflatten(0, (-1, spec.per_class))
        if spec.spare:
            classes, aside[name] = classes[: -spec.spare], classes[-spec.spare :].flatten(0, 1)
        objects = len(classes) - (spec.background and background != 'none')
        # if the background is first, it is the row of id 0
        coco = coco_ids and objects == NUM_COCO_IDS - (background == 'first' and spec.background)
        kept = len(COCO_IDS) if coco else objects - (background == 'first' and spec.per_class > 1)
        _, taken = _rows(spec, kept, coco, background)
        if coco and proposals and name.startswith(proposals):
            aside[name] = classes[taken[0], 0]
            taken = [0, *taken[1:]]
        result[name] = classes[taken].flatten(0, 1)
    return result, aside


def put_class_rows(
    state: State,
    class_rows: Sequence[ClassRows],
    background: Background,
    coco: bool,
    proposals: str,
    aside: Mapping[str, Tensor],
) -> State:
    """Inverse of `take_class_rows`. With `coco`, ids without a category are never predicted."""
    result = dict(state)
    for name, tensor in state.items():
        if not (spec := rows_of(name, class_rows)):
            continue
        classes = tensor.unflatten(0, (-1, spec.per_class))
        objects = len(classes) - (spec.background and background != 'none')
        by_id = coco and objects == len(COCO_IDS)
        total, taken = _rows(spec, objects, by_id, background)
        never = name.endswith('.bias') and spec.per_class == 1
        put = classes.new_full((total + spec.spare, *classes.shape[1:]), NEVER_FIRES if never else 0.0)
        put[taken] = classes
        if spec.spare and name in aside:
            put[-spec.spare :] = aside[name].unflatten(0, (-1, spec.per_class))
        if by_id and proposals and name.startswith(proposals):
            first = COCO_IDS[0]
            put[[0, first]] = put[[first, 0]]
            put[first, 0] = aside.get(name, put[first, 0])
        result[name] = put.flatten(0, 1)
    return result


def _rows(spec: ClassRows, objects: int, coco: bool, background: Background) -> tuple[int, list[int]]:
    """Number of rows in the other project, and the indices of ddetr's rows among them, in ddetr's order."""
    first = background == 'first'
    taken = list(COCO_IDS) if coco else [i + first for i in range(objects)]
    total = NUM_COCO_IDS if coco else objects + first
    if not spec.background or background == 'none':
        return total, taken
    return (total, [*taken, 0]) if first else (total + 1, [*taken, total])
