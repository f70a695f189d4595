"""`init_cfg=dict(type='Pretrained', ...)`: start a backbone, or another module, from a checkpoint."""

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

# In place of all of mmengine's loaders, which call torch.load unsafely (onedl-mmengine even repeats a refused load
# without weights_only). Here rather than beside `read_checkpoint`, which imports no Runner.
CheckpointLoader.register_scheme(list(CheckpointLoader._schemes), read_checkpoint, force=True)


@WEIGHT_INITIALIZERS.register_module(name='Pretrained')
class PretrainedInit(EnginePretrainedInit):
    """mmengine's `Pretrained` for checkpoints of any known format, where one that does not fit is an error.

    mmengine's takes what fits, which for a file of other names is nothing: the training then starts from scratch and
    only a log line says so.

    Args:
        checkpoint: `torchvision://resnet50`, a URL, or a file: of the module itself, or of a detector that has it.
        prefix: Prefix in a detector's names of the module to take. By default `backbone.`, and none for a whole
            detector.
        map_location: Accepted for MMDetection's configs; files are read onto the CPU.
    """

    def __call__(self, module: nn.Module) -> None:
        """Load into `module`; CheckpointError if the file lacks tensors of it, or they have other shapes."""
        name, own = self.checkpoint, module.state_dict()
        prefix = self.prefix or ('' if hasattr(module, 'backbone') else 'backbone.')
        prefix = f'{prefix.rstrip(".")}.' if prefix else ''
        state = read_weights(name, model=module).weights.state
        within = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        part = min([within, state], key=lambda part: len(_unfit(own, part)))  # the module's own names, too
        if unfit := _unfit(own, part):
            raise CheckpointError(
                f'{name} does not fit {type(module).__name__} (init_cfg=Pretrained): {len(unfit)} of its '
                f'{len(own)} tensors are missing there or have another shape, such as {unfit[0]}.'
            )
        taken = {key: value for key, value in part.items() if key in own}
        module.load_state_dict(taken, strict=False)
        print_log(f'{type(module).__name__}: {len(taken)} tensors from {name}', logger='current')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def _unfit(own: State, part: State) -> list[str]:
    """Names of a module's tensors that `part` lacks or has in another shape; batch norms' counters may be absent."""
    return [
        name
        for name, tensor in own.items()
        if not name.endswith('num_batches_tracked') and (name not in part or part[name].shape != tensor.shape)
    ]


def warn_of_random_backbone(model: nn.Module) -> None:
    """Warn if a training is about to start from a random backbone; to be called once the model is initialised."""
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
    """Whether any norm is unlike what constructors leave: then the module has loaded weights by itself."""
    norms: list[Any] = [part for part in module.modules() if 'Norm' in type(part).__name__]
    scales = [part.weight for part in norms if isinstance(getattr(part, 'weight', None), Tensor)]
    means = [part.running_mean for part in norms if isinstance(getattr(part, 'running_mean', None), Tensor)]
    changed = [(scale != scale.flatten()[0]).any() for scale in scales] + [mean.any() for mean in means]
    return any(map(bool, changed))
