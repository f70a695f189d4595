"""Workarounds that mmengine 0.10.7 needs with current packages, each with its reason.

Each uses an extension point of mmengine: registries, and methods of the Runner that `DetRunner`
(runner.py) overrides, and the optimizer wrappers (optim_wrapper.py). (`ddetr.weights.checkpoint` replaces its
checkpoint loaders.) `onedl-mmengine` 0.10.12, which installs under the same import name, needs the same workarounds.
"""

import mmengine.registry
import torch.distributed
from mmengine.registry import Registry

from ddetr.registry import SCOPE
from ddetr.utils.errors import ConfigError

# mmengine warns about each registry that has no child of the default scope, whenever it builds from one.
for _registry in vars(mmengine.registry).copy().values():
    if isinstance(_registry, Registry) and SCOPE not in _registry.children:
        Registry(_registry.name, parent=_registry, scope=SCOPE)


def init_cpu_group(launcher: str) -> None:
    """Initialise the process group over gloo; mmengine's `init_dist` selects a GPU first and fails without one."""
    if launcher != 'pytorch':
        raise ConfigError(
            f'launcher={launcher!r} needs GPUs: start with torchrun (--launcher pytorch) on CPUs.'
        )
    torch.distributed.init_process_group(backend='gloo')
