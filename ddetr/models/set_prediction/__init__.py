from .criterion import (
    AlignTerm,
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
    'AlignTerm',
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
