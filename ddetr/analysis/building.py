"""Build detectors with random weights for measurements, without downloads."""

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope

from ddetr.engine.config import check_config, explain_build_errors
from ddetr.registry import MODELS, SCOPE


def build_detector(cfg: Config) -> BaseModel:
    """Build a config's detector without loading pretrained weights.

    Raises:
        ConfigError: A component cannot be built; the message names the first one.
    """
    check_config(cfg)
    init_default_scope(SCOPE)
    with explain_build_errors():
        return MODELS.build(cfg.model)
