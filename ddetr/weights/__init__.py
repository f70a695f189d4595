from .checkpoint import read_checkpoint
from .classes import ClassRows
from .family import OptionalZeros, WeightFamily, WeightFormat, known_families
from .files import WeightsFile, read_weights, write_weights
from .huggingface import Style
from .layout import Layout, count
from .loading import LoadReport, load_weights
from .pretrained import PretrainedInit
from .rules import Rule, State

__all__ = [
    'ClassRows',
    'Layout',
    'LoadReport',
    'OptionalZeros',
    'PretrainedInit',
    'Rule',
    'State',
    'Style',
    'WeightFamily',
    'WeightFormat',
    'WeightsFile',
    'count',
    'known_families',
    'load_weights',
    'read_checkpoint',
    'read_weights',
    'write_weights',
]
