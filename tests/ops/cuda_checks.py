"""What the GPU kernels have to satisfy, on a GPU (test_cuda.py) or emulated (test_cuda_emulated.py)."""

from typing import NamedTuple

import torch
from ddetr_ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from torch import Tensor

from tests.ops.cases import FusedInputs, Inputs, make_fused_inputs, make_inputs

# Relative to the largest element: what rounding the inputs' type once or twice costs.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

KNOWN = {'shapes': ((9, 11), (5, 6), (3, 3), (2, 2)), 'channels': 32, 'points': 4}
SIZES = {
    'known at compile time': dict(KNOWN, queries=11),
    'known, merged': dict(KNOWN, queries=43),
    'vectors': {'channels': 24, 'points': 5, 'queries': 7},
    'vectors, merged': {'channels': 40, 'points': 3, 'queries': 41},
    'many points': {'shapes': ((4, 5),), 'channels': 16, 'points': 21, 'queries': 5},
    'odd channels': {'channels': 13, 'queries': 9},
}


class Case(NamedTuple):
    inputs: Inputs | FusedInputs
    grad_output: Tensor  # (B, Q, M * D)


def make_case(
    sizes: dict, dtype: torch.dtype, reference_dim: int, points_dtype: torch.dtype | None = None
) -> Case:
    """A classic case (`reference_dim` 0) or a fused one, with references in the type that sums run in."""
    if reference_dim:
        # Not rounded to 16 bits: points would come to lie exactly on pixels, where the derivative jumps.
        made = make_fused_inputs(reference_dim, dtype=torch.float64, **sizes)
        references = made.reference_points.to(torch.float64 if dtype == torch.float64 else torch.float32)
        made = made._replace(reference_points=references)
    else:
        made = make_inputs(dtype=torch.float64, **sizes)
    fine = points_dtype or dtype
    inputs = made._replace(
        value=made.value.to(dtype),
        **{name: getattr(made, name).to(fine) for name in made._fields[-2:]},
    )
    batch, queries, heads = inputs[-1].shape[:3]
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(
        batch, queries, heads * inputs.value.shape[3], generator=generator, dtype=torch.float64
    )
    return Case(inputs, grad.to(dtype))


def reference(case: Case) -> tuple[Tensor, ...]:
    """Output and gradients in float64, by autograd through the plain PyTorch form."""
    wide = [t.double().requires_grad_() if t.is_floating_point() else t for t in case.inputs]
    form = (
        ms_deform_attn_fused_reference if isinstance(case.inputs, FusedInputs) else ms_deform_attn_reference
    )
    out = form(wide[0], wide[1], *wide[3:])
    grads = torch.autograd.grad(out, [t for t in wide if t.is_floating_point()], case.grad_output.double())
    return out.detach(), *grads


def run(ops, case: Case, deterministic: bool = False, device: str = 'cpu') -> tuple[Tensor, ...]:
    """Output and gradients from the kernels: `ops` is torch.ops.ddetr_ops or torch.ops.ddetr_emulated."""
    name = 'ms_deform_attn_fused' if isinstance(case.inputs, FusedInputs) else 'ms_deform_attn'
    inputs = [t.to(device) for t in case.inputs]
    out = getattr(ops, f'{name}_forward')(*inputs)
    grads = getattr(ops, f'{name}_backward')(*inputs, case.grad_output.to(device), deterministic)
    return out, *grads


def error_of(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected element."""
    return float((got.cpu().double() - expected).abs().max() / expected.abs().max())


def assert_matches(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], case: Case) -> None:
    names = [
        'output',
        *(n for n, t in zip(case.inputs._fields, case.inputs, strict=True) if t.is_floating_point()),
    ]
    dtypes = [case.inputs.value.dtype, *(t.dtype for t in case.inputs if t.is_floating_point())]
    for name, dtype, one, other in zip(names, dtypes, got, expected, strict=True):
        assert one.dtype == dtype, name
        assert one.shape == other.shape, name
        error = error_of(one, other)
        assert error < TOLERANCES[dtype], f'{name}: {error:.1e}'


def special_points() -> tuple[Inputs, list[bool]]:
    """One query per special location on one 4 x 8 level, and whether it contributes."""
    nan, inf = float('nan'), float('inf')
    height, width = 4, 8  # powers of two: the borders are exact in every type
    cases = [
        ((0.5 / width, 0.5 / height), True),  # the first pixel's centre
        ((7.5 / width, 3.5 / height), True),  # the last one's
        ((0.0, 0.0), True),  # the map's corner: a quarter of the first pixel
        ((-0.5 / width, 0.5), False),  # pixel coordinate -1 exactly
        ((1 + 0.5 / width, 0.5), False),  # pixel coordinate `width` exactly
        ((0.5, 1 + 0.5 / height), False),
        ((-0.49 / width, 0.5), True),  # just inside
        ((nan, 0.5), False),
        ((0.5, nan), False),
        ((inf, 0.5), False),
        ((0.5, -inf), False),
        ((1e30, -1e30), False),
    ]
    locations = torch.tensor([xy for xy, _ in cases], dtype=torch.float64)[None, :, None, None, None]
    value = torch.rand(1, height * width, 1, 32, dtype=torch.float64) + 1
    weights = torch.ones(1, len(cases), 1, 1, 1, dtype=torch.float64)
    inputs = Inputs(value, torch.tensor([[height, width]]), torch.tensor([0]), locations, weights)
    return inputs, [counts for _, counts in cases]
