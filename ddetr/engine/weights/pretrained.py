"""`init_cfg=dict(type='Pretrained', ...)`: parts of a detector that start from other weights."""

import logging
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit as EnginePretrainedInit
from mmengine.model import update_init_info
from mmengine.runner import CheckpointLoader
from torch import nn

from ...registry import WEIGHT_INITIALIZERS
from ...utils.errors import CheckpointError
from .files import interpret, read_content


@WEIGHT_INITIALIZERS.register_module(name='Pretrained')
class PretrainedInit(EnginePretrainedInit):
    """mmengine's, but any weight file that we know will do, and one that does not fit is an error.

    mmengine's takes what fits, which for a file of other names is nothing: the training then starts from scratch and
    only a log line says so.

    Args:
        checkpoint: `torchvision://resnet50`, a URL, or a file: of a backbone, or of a detector that has one.
        prefix: the part of a detector to take, in our names (`backbone.`); by default, whole detectors take all
            and anything else takes a backbone.
        map_location: accepted for MMDetection's configs; files are read onto the CPU.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load into `module`.

        Raises:
            CheckpointError: the file lacks tensors of the module, or they have other shapes.
        """
        name = self.checkpoint
        content = CheckpointLoader.load_checkpoint(name) if '://' in name else read_content(name)
        prefix = self.prefix or ('' if hasattr(module, 'backbone') else 'backbone.')
        prefix = prefix if not prefix or prefix.endswith('.') else f'{prefix}.'
        state = interpret(content, Path(name)).weights.state
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        own = module.state_dict()
        unfit = [
            key
            for key, value in own.items()
            if not key.endswith('num_batches_tracked') and (key not in part or part[key].shape != value.shape)
        ]
        if unfit:
            raise CheckpointError(
                f'{name} does not fit {type(module).__name__} (init_cfg=Pretrained): {len(unfit)} of its '
                f'{len(own)} tensors are missing there or have another shape, such as {unfit[0]}.'
            )
        module.load_state_dict({key: value for key, value in part.items() if key in own}, strict=False)
        print_log(f'{type(module).__name__}: {len(part)} tensors from {name}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def warn_of_random_backbone(model: nn.Module) -> None:
    """Warn if a training is about to start from a random backbone; to be called where no weights are loaded."""
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        return
    for part in (model, backbone):
        configs: Any = getattr(part, 'init_cfg', None) or []
        configs = [configs] if isinstance(configs, dict) else configs
        if any(config.get('type') == 'Pretrained' for config in configs):
            return
    frozen = sum(not p.requires_grad for p in backbone.parameters())
    print_log(
        'the backbone starts from random weights: the config has neither load_from nor '
        "model.backbone.init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')"
        + (f', and {frozen} of its parameters are frozen and stay random.' if frozen else '.'),
        logger='current',
        level=logging.WARNING,
    )
