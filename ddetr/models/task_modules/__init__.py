from .hungarian_assigner import HungarianAssigner
from .match_costs import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost

__all__ = ['BBoxL1Cost', 'ClassificationCost', 'FocalLossCost', 'HungarianAssigner', 'IoUCost']
