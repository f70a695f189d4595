from .convert import PROJECTS, Converted, convert_state, missing_in_layers, state_for
from .files import WeightsFile, interpret, meta_of, read_content, read_weights, save_weights, write_weights
from .huggingface import USUAL, Unseen, unseen_in
from .layout import Layout, describe, fitting_configs
from .loading import LoadReport, load_weights
from .pretrained import PretrainedInit, warn_of_random_backbone

__all__ = [
    'PROJECTS',
    'USUAL',
    'Converted',
    'Layout',
    'LoadReport',
    'PretrainedInit',
    'Unseen',
    'WeightsFile',
    'convert_state',
    'describe',
    'fitting_configs',
    'interpret',
    'load_weights',
    'meta_of',
    'missing_in_layers',
    'read_content',
    'read_weights',
    'save_weights',
    'state_for',
    'unseen_in',
    'warn_of_random_backbone',
    'write_weights',
]
