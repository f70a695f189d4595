"""Checkpoints by address: `https://`, `torchvision://`, `open-mmlab://`.

mmengine calls torch.load in several loaders (onedl-mmengine even repeats a refused load without weights_only) and picks
the loader by the prefix of the file's name. `register_scheme(force=True)` replaces all of them in this process, so that
`read_checkpoint` reads every file that mmengine loads.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import barrier, get_rank
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import get_external_models

from ddetr.utils.errors import CheckpointError

from .checkpoint import read_checkpoint


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
    """Fetch a checkpoint into `$TORCH_HOME/hub/checkpoints`, unless it is there; one process a run does it.

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
