"""Class rows: the original projects number COCO's classes by category id, with gaps; we number them 0 to 79.

Rows are those of the classification layers: `(classes, C)` weights and `(classes,)` biases.
"""

from typing import Literal, NamedTuple

from torch import Tensor

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


class _Rows(NamedTuple):
    total: int  # theirs
    taken: list[int]  # theirs, in our order


def is_class_row(name: str) -> bool:
    """Whether a tensor under our names has one row (or four) for each class."""
    return matches_any(name, CLASS_TEMPLATES)


def take_class_rows(state: State, background: Background, coco_ids: bool = True) -> State:
    """Bring another project's class rows into our order, the background last.

    With `coco_ids`, as many rows as COCO has category ids are taken to be these ids, and the 80 categories' are kept.
    Other numbers of classes all stay.
    """
    result = dict(state)
    for name in filter(is_class_row, state):
        classes = _per_class(name, state[name])
        objects = classes.shape[0] - (_has_background(name) and background != 'none')
        # torchvision's row of id 0 is the background
        coco = coco_ids and objects == NUM_COCO_IDS - (background == 'first' and _has_background(name))
        rows = _rows(
            name, 80 if coco else objects - (background == 'first' and _is_boxes(name)), coco, background
        )
        result[name] = classes[rows.taken].reshape(-1, *state[name].shape[1:])
    return result


def put_class_rows(state: State, background: Background, coco: bool) -> State:
    """The inverse of `take_class_rows`; with `coco`, ids that are no category get zero weights and never fire."""
    result = dict(state)
    for name in filter(is_class_row, state):
        classes = _per_class(name, state[name])
        objects = classes.shape[0] - (_has_background(name) and background != 'none')
        rows = _rows(name, objects, coco and objects == len(COCO_IDS), background)
        never = name.endswith('.bias') and not _is_boxes(name)
        put = classes.new_full((rows.total, *classes.shape[1:]), NEVER_FIRES if never else 0.0)
        put[rows.taken] = classes
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
