from .convert import Converted, convert_state, state_for
from .files import WeightsFile, interpret, read_content, read_weights, write_weights
from .layout import Layout, describe, fitting_configs
from .loading import LoadReport, load_weights

__all__ = [
    'Converted',
    'Layout',
    'LoadReport',
    'WeightsFile',
    'convert_state',
    'describe',
    'fitting_configs',
    'interpret',
    'load_weights',
    'read_content',
    'read_weights',
    'state_for',
    'write_weights',
]
