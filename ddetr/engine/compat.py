"""Workarounds for mmengine 0.10.7 with current packages.

They use extension points of mmengine: registries, methods of the Runner overridden by `DetRunner` (runner.py), and
optimizer wrappers (optim_wrapper.py); the formatter of configs below is the exception. `ddetr.weights.checkpoint`
replaces the checkpoint loaders. `onedl-mmengine` 0.10.12, which installs under the same import name, needs the same
workarounds.
"""

from functools import lru_cache
from typing import Any

import mmengine.config.config
import mmengine.registry
import torch.distributed
from mmengine.registry import Registry
from yapf.yapflib.yapf_api import FormatCode

from ddetr.registry import SCOPE
from ddetr.utils.errors import ConfigError

# mmengine warns on every build from a registry without a child registry in the default scope.
for _registry in vars(mmengine.registry).copy().values():
    if isinstance(_registry, Registry) and SCOPE not in _registry.children:
        Registry(_registry.name, parent=_registry, scope=SCOPE)


@lru_cache(maxsize=8)
def _formatted(text: str, style: tuple[tuple[str, Any], ...]) -> tuple[str, bool]:
    return FormatCode(text, style_config=dict(style))


# mmengine formats the whole config with yapf, which takes about a second, for every checkpoint and log.
mmengine.config.config.FormatCode = lambda text, style_config, **_: _formatted(text, (*style_config.items(),))


def init_cpu_group(launcher: str) -> None:
    """Initialise the process group over gloo; mmengine's `init_dist` selects a GPU first and fails without one."""
    if launcher != 'pytorch':
        raise ConfigError(f'launcher={launcher!r} needs GPUs: on CPUs, use torchrun with --launcher pytorch.')
    torch.distributed.init_process_group(backend='gloo')
