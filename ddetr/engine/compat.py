"""What mmengine 0.10.7 needs on today's packages, in one place, one reason a bridge.

Each bridge uses an extension point that mmengine offers: registries, and methods of the Runner that `DetRunner`
(runner.py) overrides. (`ddetr.weights.checkpoint` replaces its checkpoint loaders.) `onedl-mmengine` 0.10.12, which
installs under the same import name, takes the same bridges.
"""

from typing import Any

import mmengine.registry
import torch
import torch.distributed
from mmengine.optim import AmpOptimWrapper as GpuAmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry

from ddetr.registry import OPTIM_WRAPPERS, SCOPE
from ddetr.utils.errors import ConfigError

# mmengine warns about each registry that has no child of the default scope, whenever it builds from one.
for _registry in vars(mmengine.registry).copy().values():
    if isinstance(_registry, Registry) and SCOPE not in _registry.children:
        Registry(_registry.name, parent=_registry, scope=SCOPE)


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(GpuAmpOptimWrapper):
    """Mixed precision on the CPU too: bfloat16 there, which needs no loss scaling; on a GPU float16 by default.

    mmengine's own first asserts that there is a GPU, hence the grandparent's constructor.
    """

    def __init__(self, loss_scale: Any = 'dynamic', dtype: str | torch.dtype | None = None, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self._scale_update_param = loss_scale if isinstance(loss_scale, float) else None
        scaling: Any = {} if self._scale_update_param is None else {'init_scale': loss_scale}
        scaling = loss_scale if isinstance(loss_scale, dict) else scaling
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        # bfloat16 has float32's range
        enabled = device == 'cuda' and self.cast_dtype is not torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler(device, enabled=enabled, **scaling)


def init_cpu_group(launcher: str) -> None:
    """Join the processes over gloo; mmengine's `init_dist` selects a GPU first and fails where there is none."""
    if launcher != 'pytorch':
        raise ConfigError(
            f'launcher={launcher!r} needs GPUs: start with torchrun (--launcher pytorch) on CPUs.'
        )
    torch.distributed.init_process_group(backend='gloo')
