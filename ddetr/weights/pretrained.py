"""`init_cfg=dict(type='Pretrained', ...)`: initialise a backbone, or another module, from a checkpoint."""

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit as EnginePretrainedInit
from mmengine.model import update_init_info
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ddetr.registry import WEIGHT_INITIALIZERS
from ddetr.utils.errors import CheckpointError

from .checkpoint import read_checkpoint
from .files import read_weights
from .rules import State

# Replace all of mmengine's loaders, which call torch.load unsafely (onedl-mmengine even repeats a rejected load without
# weights_only). Not done in checkpoint.py, which must not import the Runner.
CheckpointLoader.register_scheme(list(CheckpointLoader._schemes), read_checkpoint, force=True)


@WEIGHT_INITIALIZERS.register_module(name='Pretrained')
class PretrainedInit(EnginePretrainedInit):
    """mmengine's `Pretrained` for checkpoints in any supported format. Mismatches raise an error.

    mmengine's version loads only matching tensors, possibly none, so that training silently starts from scratch.

    Args:
        checkpoint: `torchvision://resnet50`, a URL, or a file with weights of the module or of a detector that
            contains it.
        prefix: Name prefix of the module in a detector checkpoint. Default: `backbone.`, or none for a detector.
        map_location: Accepted for compatibility with MMDetection configs; files are read onto the CPU.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load into `module`. Raise CheckpointError if tensors are missing or have different shapes."""
        name, own = self.checkpoint, module.state_dict()
        prefix = self.prefix or ('' if hasattr(module, 'backbone') else 'backbone.')
        prefix = f'{prefix.rstrip(".")}.' if prefix else ''
        state = read_weights(name, model=module).weights.state
        within = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        part = min([within, state], key=lambda part: len(_unfit(own, part)))  # with or without the prefix
        if unfit := _unfit(own, part):
            raise CheckpointError(
                f'{name} does not match {type(module).__name__} (init_cfg=Pretrained): {len(unfit)} of its '
                f'{len(own)} tensors are missing in the file or have a different shape, such as {unfit[0]}.'
            )
        taken = {key: value for key, value in part.items() if key in own}
        module.load_state_dict(taken, strict=False)
        print_log(f'{type(module).__name__}: {len(taken)} tensors from {name}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def _unfit(own: State, part: State) -> list[str]:
    """Names of a module's tensors that `part` lacks or has in another shape, ignoring batch norm counters."""
    return [
        name
        for name, tensor in own.items()
        if not name.endswith('num_batches_tracked') and (name not in part or part[name].shape != tensor.shape)
    ]


def warn_of_random_backbone(model: nn.Module) -> None:
    """Warn if training is about to start from a random backbone. Call it after the model is initialised."""
    backbone: Any = getattr(model, 'backbone', None)
    configs: list[Any] = []
    for part in (model, backbone):
        config: Any = getattr(part, 'init_cfg', None) or []
        configs += [config] if isinstance(config, dict) else config
    if (
        backbone is None
        or any(config.get('type') == 'Pretrained' for config in configs)
        or _has_learned(backbone)
    ):
        return
    frozen = sum(not p.requires_grad for p in backbone.parameters())
    print_log(
        'the backbone starts from random weights: the config has neither load_from nor weights of this '
        f"{type(backbone).__name__}, model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...)"
        + (f', and {frozen} of its parameters are frozen and stay random.' if frozen else '.'),
        logger='current',
        level=logging.WARNING,
    )


def _has_learned(module: nn.Module) -> bool:
    """Whether any norm differs from its default initialisation, so that the module must have loaded weights itself."""
    norms: list[Any] = [part for part in module.modules() if 'Norm' in type(part).__name__]
    scales = [part.weight for part in norms if isinstance(getattr(part, 'weight', None), Tensor)]
    means = [part.running_mean for part in norms if isinstance(getattr(part, 'running_mean', None), Tensor)]
    changed = [(scale != scale.flatten()[0]).any() for scale in scales] + [mean.any() for mean in means]
    return any(map(bool, changed))
