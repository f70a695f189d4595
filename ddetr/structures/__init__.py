from .det_data_sample import DetDataSample
from .set_prediction import (
    DecoderStates,
    EncoderProposals,
    FlatFeatures,
    Matching,
    QueryInit,
    SetPredictions,
    SetTargets,
)

__all__ = [
    'DecoderStates',
    'DetDataSample',
    'EncoderProposals',
    'FlatFeatures',
    'Matching',
    'QueryInit',
    'SetPredictions',
    'SetTargets',
]
