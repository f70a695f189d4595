"""Training steps in float16 and bfloat16 for every detector family: losses stay in float32."""

import logging
import math

import pytest
import torch
from torch import nn

from ddetr.analysis.batches import labelled_batch
from ddetr.engine import optim_wrapper
from ddetr.engine.optim_wrapper import AmpOptimWrapper
from ddetr.models.task_modules import HungarianAssigner, MaxIoUAssigner
from ddetr.registry import MODELS
from ddetr.structures import QueryGroup, SetPredictions
from ddetr.utils import ConfigError
from tests.models.helpers import narrow
from tests.models.test_checkpointing import FAMILIES, model_config

CONFIGS = {
    **FAMILIES,
    'refine': 'deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    'plain-two-stage': 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'single-scale': 'deformable_detr/deformable-detr-single-scale_r50_16xb2-50e_coco.py',
    'detr-dc5': 'detr/detr-dc5_r50_64xb1-500e_coco.py',
}
LOSSES = ('criterion.terms', 'loss_cls', 'loss_bbox')


def detector(root, family):
    config = model_config(root, family) if family in FAMILIES else narrow(root, CONFIGS[family])
    return MODELS.build(config).train()


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in inner for tensor in tensors(part)]


def wrapper(model, **options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return AmpOptimWrapper(optimizer=optimizer, clip_grad={'max_norm': 0.1}, **options)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
@pytest.mark.parametrize('family', CONFIGS)
def test_a_step_trains_with_losses_and_matching_in_float32(repo_root, monkeypatch, family, dtype):
    model, seen, inside = detector(repo_root, family), {}, set()

    def note(name):
        return lambda module, args, kwargs: seen.setdefault(name, []).extend(
            t.dtype for t in tensors([args, kwargs]) if t.is_floating_point()
        )

    for name, module in model.named_modules():
        if any(part in name for part in LOSSES):
            module.register_forward_pre_hook(note('loss'), with_kwargs=True)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda module, args, output: inside.add(output.dtype))
    for assigner in (HungarianAssigner, MaxIoUAssigner):
        assign = assigner.assign

        def watched(self, *args, _assign=assign, **kwargs):
            note('matching')(None, args, kwargs)
            return _assign(self, *args, **kwargs)

        monkeypatch.setattr(assigner, 'assign', watched)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim = wrapper(model, dtype=dtype, loss_scale={'init_scale': 8.0})
    batch = labelled_batch(
        [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((128, 96), (80, 160))], 7
    )
    losses = model.train_step(batch, optim)
    assert all(math.isfinite(value) for value in losses.values())
    assert inside == {dtype}
    assert set(seen['loss']) == set(seen['matching']) == {torch.float32}
    assert optim.loss_scaler.get_scale() == (8.0 if dtype is torch.float16 else 1.0)  # nothing has overflown
    moved = [not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad]
    assert sum(moved) > 0.9 * len(moved)
    assert all(p.isfinite().all() for p in model.parameters())


def test_large_predictions_in_float16_are_matched_and_have_finite_losses(repo_root):
    """The largest numbers that float16 holds; in float16 themselves, costs and losses would overflow."""
    head = detector(repo_root, 'deformable-detr').bbox_head
    largest = torch.finfo(torch.float16).max
    batch = labelled_batch([torch.zeros(3, 480, 640, dtype=torch.uint8)], 7)
    logits = (torch.randn(2, 1, 20, 7).sign() * largest).half().requires_grad_()
    boxes = (torch.rand(2, 1, 20, 4) * largest).half().requires_grad_()
    for in_autocast in (False, True):
        with torch.autocast('cpu', torch.float16, enabled=in_autocast):
            losses = head.loss(
                SetPredictions(logits, boxes, (QueryGroup(slice(0, 20)),)), batch['data_samples']
            )
        assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())


def test_other_dtypes_are_an_error():
    with pytest.raises(ConfigError, match=r"optim_wrapper\.dtype='float8' must be one of float16, bfloat16"):
        wrapper(nn.Linear(1, 1), dtype='float8')


@pytest.mark.parametrize(('capability', 'warnings'), [('AVX2', 1), ('AVX512', 0), ('DEFAULT', 0)])
def test_cpu_that_emulates_the_dtype_gives_a_warning(monkeypatch, capability, warnings):
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    said = []
    monkeypatch.setattr(optim_wrapper, 'print_log', lambda text, logger, level: said.append((level, text)))
    wrapper(nn.Linear(1, 1), dtype='bfloat16')
    assert len(said) == warnings
    assert all(level == logging.WARNING and 'no bfloat16 instructions' in text for level, text in said)
