"""Entries of a benchmark: variants of a detector, exported files, other projects' detectors, and the hardware limit."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from mmengine.config import Config

from ddetr.apis import prepare_for_inference

from .limit import limit_step
from .peers import peer_steps
from .speed import detection_step, training_step

# name -> keywords of `prepare_for_inference`, or None for the detector itself
FORMS: Mapping[str, Mapping[str, Any] | None] = {
    'plain': None,
    'amp': None,
    'prepared': {'dtype': 'fp32'},
    'prepared-bf16': {'dtype': 'bf16'},
    'compiled': {'dtype': 'fp32', 'compile': True},
}
Step = Callable[[], Any]
Batch = dict[str, list]


class Contest(NamedTuple):
    """Entries to benchmark, in this order."""

    model: Any  # detector with random weights
    cfg: Config
    forms: tuple[str, ...]
    peers: tuple[str, ...] = ()
    exported: tuple[str, ...] = ()  # paths
    limit: bool = False  # in float32, and in bfloat16 if a variant uses it


def detection_steps(contest: Contest, batch: Batch) -> dict[str, Step]:
    """Return, by name, a function for each entry that runs inference on a batch."""
    model, steps = contest.model, {}
    device = next(model.parameters()).device
    for name in contest.forms:
        options = FORMS[name]
        form = copy.deepcopy(model) if options is None else prepare_for_inference(model, **options)
        steps[name] = detection_step(form, batch, amp=name == 'amp')
    for path in contest.exported:
        steps[path] = _exported_step(path, model, batch)
    for name in contest.peers:
        steps[name] = peer_steps(name, batch, model.num_classes, device)[0]
    if contest.limit:
        steps['limit'] = limit_step(model, batch)
        if {'amp', 'prepared-bf16'} & set(contest.forms):
            steps['limit bf16'] = limit_step(model, batch, torch.bfloat16)
    return steps


def training_steps(contest: Contest, batch: Batch) -> dict[str, Step]:
    """Return, by name, a training step for each entry; prepared and exported detectors cannot be trained."""
    model = contest.model
    device = next(model.parameters()).device
    steps = {
        name: training_step(copy.deepcopy(model), batch, contest.cfg, amp=name == 'amp')
        for name in contest.forms
        if FORMS[name] is None
    }
    steps |= {name: peer_steps(name, batch, model.num_classes, device)[1] for name in contest.peers}
    return steps


def _exported_step(path: str, model: Any, batch: Batch) -> Step:
    from ddetr.deployment import load

    runtime = load(path, threads=torch.get_num_threads())
    outside = runtime.info.preprocessing == 'outside'
    inputs = (
        model.data_preprocessor(copy.deepcopy(batch))['inputs'] if outside else torch.stack(batch['inputs'])
    )
    images = inputs.cpu().numpy()
    sizes_hw = torch.tensor([image.shape[-2:] for image in batch['inputs']]).numpy()
    return lambda: runtime(images, sizes_hw)
