from .criterion import (
    BoxTerm,
    ClassTerm,
    LossTerm,
    SetCriterion,
    SetHead,
    VarifocalTerm,
    build_criterion,
    make_targets,
)
from .selection import select_detections, set_pred_instances

__all__ = [
    'BoxTerm',
    'ClassTerm',
    'LossTerm',
    'SetCriterion',
    'SetHead',
    'VarifocalTerm',
    'build_criterion',
    'make_targets',
    'select_detections',
    'set_pred_instances',
]
