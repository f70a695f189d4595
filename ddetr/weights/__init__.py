from typing import TYPE_CHECKING

from ddetr.utils.lazy import lazy_names

from .checkpoint import read_checkpoint
from .classes import ClassRows
from .family import OptionalZeros, WeightFamily, WeightFormat, known_families
from .files import WeightsFile, read_weights, write_weights
from .huggingface import Style
from .layout import Layout, count
from .loading import LoadReport, load_weights
from .rules import Rule, State

if TYPE_CHECKING:
    from .pretrained import PretrainedInit

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

__getattr__ = lazy_names(
    __name__, {'pretrained': ('PretrainedInit',)}
)  # importing mmengine.model takes a second
