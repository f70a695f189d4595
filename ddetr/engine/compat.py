"""Workarounds for mmengine 0.10.7 with current packages.

They use extension points of mmengine: registries, methods of the Runner overridden by `DetRunner` (runner.py), and
optimizer wrappers (optim_wrapper.py). `ddetr.weights.checkpoint` replaces the checkpoint loaders. `onedl-mmengine`
0.10.12, which installs under the same import name, needs the same workarounds.
"""

import mmengine.registry
import torch.distributed
from mmengine.registry import Registry

from ddetr.registry import SCOPE
from ddetr.utils.errors import ConfigError

# mmengine warns on every build from a registry without a child registry in the default scope.
for _registry in vars(mmengine.registry).copy().values():
    if isinstance(_registry, Registry) and SCOPE not in _registry.children:
        Registry(_registry.name, parent=_registry, scope=SCOPE)


def init_cpu_group(launcher: str) -> None:
    """Initialise the process group over gloo; mmengine's `init_dist` selects a GPU first and fails without one."""
    if launcher != 'pytorch':
        raise ConfigError(f'launcher={launcher!r} needs GPUs: on CPUs, use torchrun with --launcher pytorch.')
    torch.distributed.init_process_group(backend='gloo')
