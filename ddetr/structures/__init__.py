from .det_data_sample import Annotations, DetDataSample, Samples
from .set_prediction import (
    DecoderStates,
    EncoderProposals,
    FlatFeatures,
    FlatMap,
    Matching,
    QueryInit,
    SetPredictions,
    SetTargets,
)
from .two_stage import AnchorPredictions, Proposals, RoIPredictions, RoITargets, Sampled

__all__ = [
    'AnchorPredictions',
    'Annotations',
    'DecoderStates',
    'DetDataSample',
    'EncoderProposals',
    'FlatFeatures',
    'FlatMap',
    'Matching',
    'Proposals',
    'QueryInit',
    'RoIPredictions',
    'RoITargets',
    'Sampled',
    'Samples',
    'SetPredictions',
    'SetTargets',
]
