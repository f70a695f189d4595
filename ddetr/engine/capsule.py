"""Files that store one training step for replay elsewhere (tools/analysis/replay.py)."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.structures import BaseDataElement, InstanceData

import ddetr
from ddetr.structures import Annotations, DetDataSample
from ddetr.structures.effective_batch import EffectiveBatch
from ddetr.utils.errors import CheckpointError, first_line
from ddetr.utils.files import write_atomically
from ddetr.weights.checkpoint import SAFE_TYPES

from .step_trace import Step

PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'numpy')
BATCH_TYPES = (DetDataSample, InstanceData, BaseDataElement, Annotations)


class Capsule(NamedTuple):
    """A training step of one process with everything needed to replay it."""

    step: Step
    weights: Mapping[str, Any]  # the model's state dict before the step, buffers included
    config: Mapping[str, Any]  # complete config, as plain dicts
    config_file: str | None  # its folder may contain modules named in `custom_imports`
    loss_scaler: Mapping[str, Any]  # state; empty without a loss scaler
    losses: Mapping[str, float]  # losses when the step was rerun immediately
    place: str  # first non-finite module in that rerun; empty if everything was finite
    report: str  # message of the failure
    iteration: int  # from 1
    rank: int
    versions: Mapping[str, str]  # versions of ddetr and its dependencies


def versions() -> dict[str, str]:
    """Versions of ddetr and of the libraries that affect its numerical results."""
    found = {'ddetr': ddetr.__version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def write_capsule(capsule: Capsule, path: Path) -> None:
    """Write a capsule atomically.

    Raises:
        OSError, RuntimeError: The disk is full or cannot be written.
    """
    step = {**capsule.step._asdict(), 'effective': asdict(capsule.step.effective)}
    content = {**capsule._asdict(), 'step': step}
    write_atomically(path, lambda unfinished: torch.save(content, unfinished))


def read_capsule(path: str | Path, trust: bool = False) -> Capsule:
    """Read a capsule onto the CPU. Unless `trust` is set, loading never executes code.

    Raises:
        CheckpointError: The file is unreadable, or contains objects of unknown types and is not trusted.
    """
    if not Path(path).is_file():
        raise CheckpointError(f'capsule {path} does not exist: check the path.')
    try:
        with torch.serialization.safe_globals([*SAFE_TYPES, *BATCH_TYPES]):
            content = torch.load(path, map_location='cpu', weights_only=not trust)
        step = content['step']
        step = Step(**{**step, 'effective': EffectiveBatch(**step['effective'])})
        return Capsule(**{**content, 'step': step})
    except Exception as error:  # torch.load can raise any exception on a malformed file
        hint = '' if trust else ' If you wrote it yourself and it contains custom sample types, add --trust.'
        raise CheckpointError(f'capsule {path} cannot be read: {first_line(error)}.{hint}') from error
