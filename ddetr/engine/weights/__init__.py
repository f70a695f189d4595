from .convert import Converted, convert_state, state_for
from .files import WeightsFile, interpret, read_content, read_weights, write_weights
from .layout import Layout, describe, fitting_configs
from .loading import LoadReport, load_weights
from .pretrained import PretrainedInit, warn_of_random_backbone

__all__ = [
    'Converted',
    'Layout',
    'LoadReport',
    'PretrainedInit',
    'WeightsFile',
    'convert_state',
    'describe',
    'fitting_configs',
    'interpret',
    'load_weights',
    'read_content',
    'read_weights',
    'state_for',
    'warn_of_random_backbone',
    'write_weights',
]
