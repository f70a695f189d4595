"""What mmengine 0.10.7 needs on today's packages, in one place, one reason a bridge.

Each bridge uses an extension point that mmengine offers: schemes of its checkpoint loader, registries, and
methods of the Runner that `DetRunner` (runner.py) overrides. No function of mmengine or torch is replaced, but
importing this module changes the whole process: `force=True` below makes every mmengine loader read checkpoints
through ddetr's reader, for other code that uses mmengine too. `onedl-mmengine` 0.10.12, which installs under the same
import name, takes the same bridges.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import mmengine.registry
import torch
import torch.distributed
from mmengine.dist import barrier, get_rank
from mmengine.optim import AmpOptimWrapper as GpuAmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models

from ddetr.registry import OPTIM_WRAPPERS, SCOPE
from ddetr.utils.errors import CheckpointError, ConfigError

from .checkpoint import read_checkpoint

# mmengine warns about each registry that has no child of the default scope, whenever it builds from one.
for _registry in vars(mmengine.registry).copy().values():
    if isinstance(_registry, Registry) and SCOPE not in _registry.children:
        Registry(_registry.name, parent=_registry, scope=SCOPE)


# mmengine calls torch.load in several loaders (onedl-mmengine even repeats a refused load without
# weights_only) and picks the loader by the prefix of the file's name: each prefix leads to our reader instead.
@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """mmengine's loader of local files, safe; always onto the CPU (load_state_dict moves what it takes)."""
    return read_checkpoint(filename)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Download once into torch's cache, then read like any other file."""
    return load_from_local(str(download(filename)))


@CheckpointLoader.register_scheme(prefixes=('torchvision://', 'modelzoo://'), force=True)
def load_from_torchvision(filename: str, map_location: Any = None) -> dict[str, Any]:
    """`torchvision://resnet50`: the first ImageNet weights of that name, as MMDetection's configs mean it."""
    import torchvision  # takes a second, mostly for torch._dynamo

    name = filename.split('://')[1]
    try:
        weights = torchvision.models.get_model_weights(name)['IMAGENET1K_V1']
    except (ValueError, KeyError) as error:
        raise CheckpointError(f'{filename}: torchvision has no ImageNet weights for {name!r}.') from error
    return load_from_http(weights.url)


@CheckpointLoader.register_scheme(prefixes=('open-mmlab://', 'openmmlab://'), force=True)
def load_from_openmmlab(filename: str, map_location: Any = None) -> dict[str, Any]:
    """`open-mmlab://detectron2/resnet50_caffe`, as MMDetection's configs name backbones: mmengine knows the URL."""
    name = filename.split('://')[1]
    url = get_external_models().get(name)
    if url is None:
        raise CheckpointError(f'{filename}: OpenMMLab has no weights for {name!r}.')
    return load_from_http(url)


@CheckpointLoader.register_scheme(
    prefixes=('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'mmcls://'), force=True
)
def refuse_remote(filename: str, map_location: Any = None) -> NoReturn:
    """The stores of other projects, which mmengine reads without our checks."""
    raise CheckpointError(
        f'{filename}: this kind of address is not read; download the file and give its path.'
    )


def download(url: str) -> Path:
    """Fetch a weight file into `$TORCH_HOME/hub/checkpoints`, unless it is there; one process a run does it.

    Raises:
        CheckpointError: there is no connection; the message names the file to fetch and where to put it.
    """
    path = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[-1]
    if get_rank() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch's naming scheme: the file name ends in the first digits of the content's hash
        digest = re.search(r'-([a-f0-9]{8,})\.', path.name)
        try:
            torch.hub.download_url_to_file(url, str(path), digest and digest[1])
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f'{url} could not be fetched ({error}): download it elsewhere and put it at {path}.'
            ) from error
    barrier()
    return path


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(GpuAmpOptimWrapper):
    """Mixed precision on the CPU too: bfloat16 there, which needs no loss scaling; on a GPU float16 by default.

    mmengine's own first asserts that there is a GPU, hence the grandparent's constructor.
    """

    def __init__(self, loss_scale: Any = 'dynamic', dtype: str | torch.dtype | None = None, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self._scale_update_param = loss_scale if isinstance(loss_scale, float) else None
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        scaling: dict[str, Any] = loss_scale if isinstance(loss_scale, dict) else {}
        if isinstance(loss_scale, float):
            scaling = {'init_scale': loss_scale}
        # bfloat16 has float32's range
        enabled = device == 'cuda' and self.cast_dtype is not torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler(device, enabled=enabled, **scaling)


def init_cpu_group(launcher: str) -> None:
    """Join the processes over gloo; mmengine's `init_dist` selects a GPU first and fails where there is none.

    Raises:
        ConfigError: a launcher other than torchrun's, which needs GPUs.
    """
    if launcher != 'pytorch':
        raise ConfigError(
            f'launcher={launcher!r} needs GPUs: start with torchrun (--launcher pytorch) on CPUs.'
        )
    torch.distributed.init_process_group(backend='gloo')
