"""Detectors to be measured: with random weights, so that nothing has to be downloaded."""

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope

from ddetr.engine.config import check_config, explain_build_errors
from ddetr.registry import MODELS, SCOPE


def build_detector(cfg: Config) -> BaseModel:
    """A config's detector as its constructor leaves it: pretrained weights are not looked for.

    Raises:
        ConfigError: the first thing in the config that cannot be built.
    """
    check_config(cfg)
    init_default_scope(SCOPE)
    with explain_build_errors():
        return MODELS.build(cfg.model)
