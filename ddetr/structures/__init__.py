from .det_data_sample import Annotations, DetDataSample, Samples
from .detections import Detections
from .image_batch import ImageBatch
from .region_prediction import AnchorPredictions, Proposals, RoIPredictions, RoITargets, Sampled
from .set_prediction import (
    NO_OBJECT,
    DecoderInput,
    DecoderStates,
    EncoderProposals,
    FlatFeatures,
    FlatMap,
    Matched,
    Matching,
    QueryGroup,
    SetPredictions,
    SetTargets,
    separate_groups,
)

__all__ = [
    'NO_OBJECT',
    'AnchorPredictions',
    'Annotations',
    'DecoderInput',
    'DecoderStates',
    'DetDataSample',
    'Detections',
    'EncoderProposals',
    'FlatFeatures',
    'FlatMap',
    'ImageBatch',
    'Matched',
    'Matching',
    'Proposals',
    'QueryGroup',
    'RoIPredictions',
    'RoITargets',
    'Sampled',
    'Samples',
    'SetPredictions',
    'SetTargets',
    'separate_groups',
]
