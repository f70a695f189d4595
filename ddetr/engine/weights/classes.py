"""Class rows: the original projects number COCO's classes by category id, with gaps; we number them 0 to 79.

Rows are those of the classification layers: `(classes, C)` weights and `(classes,)` biases.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import Tensor

from .layout import Layout
from .rules import State, matches_any

# COCO's annotation files leave out 10 of the ids 1 to 90.
COCO_IDS = tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
NUM_COCO_IDS = 91  # 0 to 90

# The logit of a class that does not exist: its sigmoid, or its share of a softmax, is 0 in float32.
NEVER_FIRES = -1e4

# Classification layers, and Faster R-CNN's boxes, of which it has 4 rows a class.
CLASS_TEMPLATES = (
    'bbox_head.cls_branches.{i}.{p}',
    'bbox_head.fc_cls.{p}',
    'roi_head.bbox_head.fc_cls.{p}',
    'roi_head.bbox_head.fc_reg.{p}',
)

# Where another project keeps the row of "no object". Ours is the last, in the families that have one.
Background = Literal['none', 'first', 'last']


EMPTY: Mapping[str, Tensor] = MappingProxyType({})


class _Rows(NamedTuple):
    total: int  # theirs
    taken: list[int]  # theirs, in our order


def is_class_row(name: str) -> bool:
    """Whether a tensor under our names has one row (or four) for each class."""
    return matches_any(name, CLASS_TEMPLATES)


def proposal_branch(layout: Layout) -> str:
    """How the names of the class branch that rates the two-stage variant's proposals begin; '' without one.

    Its row 0 says whether there is any object, in every project and with any classes: the loss gives all objects
    label 0, and the proposals are chosen by that row alone. The other rows learn to say nothing.
    """
    return f'bbox_head.cls_branches.{layout.decoder_layers}.' if layout.as_two_stage else ''


def take_class_rows(
    state: State, background: Background, coco_ids: bool = True, proposals: str = ''
) -> tuple[State, State]:
    """Bring another project's class rows into our order, the background last.

    Args:
        state: under our names.
        background: where their no-object is.
        coco_ids: take as many rows as COCO has category ids for these ids, and keep those of the 80 categories. Other
            numbers of classes all stay.
        proposals: see `proposal_branch`; its row 0 stays the first, in place of the first category's.

    Returns:
        The state, and the proposals' row of the first category, by name, for `put_class_rows`.
    """
    result, aside = dict(state), {}
    for name in filter(is_class_row, state):
        classes = _per_class(name, state[name])
        objects = classes.shape[0] - (_has_background(name) and background != 'none')
        # torchvision's row of id 0 is the background
        coco = coco_ids and objects == NUM_COCO_IDS - (background == 'first' and _has_background(name))
        kept = len(COCO_IDS) if coco else objects - (background == 'first' and _is_boxes(name))
        taken = _rows(name, kept, coco, background).taken
        if coco and proposals and name.startswith(proposals):
            aside[name] = classes[taken[0]]
            taken = [0, *taken[1:]]
        result[name] = classes[taken].reshape(-1, *state[name].shape[1:])
    return result, aside


def put_class_rows(
    state: State, background: Background, coco: bool, proposals: str = '', aside: Mapping[str, Tensor] = EMPTY
) -> State:
    """The inverse of `take_class_rows`; with `coco`, ids that are no category get zero weights and never fire."""
    result = dict(state)
    for name in filter(is_class_row, state):
        classes = _per_class(name, state[name])
        objects = classes.shape[0] - (_has_background(name) and background != 'none')
        by_id = coco and objects == len(COCO_IDS)
        rows = _rows(name, objects, by_id, background)
        never = name.endswith('.bias') and not _is_boxes(name)
        put = classes.new_full((rows.total, *classes.shape[1:]), NEVER_FIRES if never else 0.0)
        put[rows.taken] = classes
        if by_id and proposals and name.startswith(proposals):
            first = COCO_IDS[0]
            put[[0, first]] = put[[first, 0]]
            put[first] = aside.get(name, put[first])
        result[name] = put.reshape(-1, *state[name].shape[1:])
    return result


def _rows(name: str, objects: int, coco: bool, background: Background) -> _Rows:
    first = background == 'first'
    taken = list(COCO_IDS) if coco else [i + first for i in range(objects)]
    total = NUM_COCO_IDS if coco else objects + first
    if background == 'last':
        taken, total = [*taken, total], total + 1
    elif first and _has_background(name):
        taken = [*taken, 0]
    return _Rows(total, taken)


def _has_background(name: str) -> bool:
    return '.fc_cls.' in name


def _is_boxes(name: str) -> bool:
    return '.fc_reg.' in name


def _per_class(name: str, tensor: Tensor) -> Tensor:
    return tensor.unflatten(0, (-1, 4)) if _is_boxes(name) else tensor
