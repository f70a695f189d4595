"""Checks of the CUDA kernels, run on a GPU (test_cuda.py) or emulated (test_cuda_emulated.py)."""

from typing import NamedTuple

import torch
from ddetr_ops.reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations_of,
)
from torch import Tensor

from tests.ops.cases import FusedInputs, Inputs, make_fused_inputs, make_inputs

# Relative to the largest element: what rounding the inputs' type once or twice costs.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

KNOWN = {'shapes': ((9, 11), (5, 6), (3, 3), (2, 2)), 'channels': 32, 'points': 4}
SIZES = {
    'D=32': dict(KNOWN, queries=11),
    'D=32, merged': dict(KNOWN, queries=43),
    'D=16, merged': {'channels': 16, 'points': 3, 'queries': 41},
    'D=64, merged': {'channels': 64, 'points': 5, 'queries': 41},
    'D=128, merged': {'channels': 128, 'points': 1, 'queries': 41},
    'vectors': {'channels': 24, 'points': 5, 'queries': 7},
    'vectors, merged': {'channels': 40, 'points': 3, 'queries': 41},
    'many points': {'shapes': ((4, 5),), 'channels': 16, 'points': 21, 'queries': 5},
    'odd channels': {'channels': 13, 'queries': 9},
}


class Case(NamedTuple):
    inputs: Inputs | FusedInputs
    grad_output: Tensor  # (B, Q, M * D)
    num_points: tuple[int, ...] = ()  # of each level, where they differ: locations are then (B, Q, M, K, 2)


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


def make_uneven_case(num_points: tuple[int, ...], dtype: torch.dtype, reference_dim: int, **sizes) -> Case:
    """Levels that differ in their number of points."""
    count = sum(num_points)
    case = make_case(
        dict(sizes, shapes=KNOWN['shapes'][: len(num_points)], points=count), dtype, reference_dim
    )
    *rest, locations, weights = case.inputs
    weights = weights[..., :count] if reference_dim else weights[..., 0, :]
    return case._replace(
        inputs=type(case.inputs)(*rest, locations[..., 0, :, :], weights), num_points=num_points
    )


def random_case(seed: int) -> Case:
    """Any sizes, in float32. No point lies near a pixel centre, where the derivative by the location jumps and rounding
    decides on which side it is taken."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    shapes = tuple((pick(1, 40), pick(1, 40)) for _ in range(pick(1, 5)))
    sizes = {'shapes': shapes, 'batch': pick(1, 3), 'queries': pick(1, 2000), 'heads': pick(1, 8)}
    sizes |= {'channels': pick(1, 70), 'points': pick(1, 9)}
    case = make_case(sizes, torch.float64, 2 * pick(0, 2))
    return _cast(case._replace(inputs=_away_from_pixel_centres(case.inputs)), torch.float32)


def _away_from_pixel_centres(inputs: Inputs | FusedInputs, margin: float = 0.01) -> Inputs | FusedInputs:
    """Moves every point at least `margin` pixels from the pixel centres' rows and columns."""
    sizes = inputs.spatial_shapes.flip(-1).double()[:, None]  # (L, 1, 2), w and h
    if isinstance(inputs, Inputs):
        pixels = inputs.sampling_locations * sizes - 0.5
        pixels_per_unit: Tensor | float = sizes
    else:
        references = inputs.reference_points[:, :, None, :, None]
        pixels = sampling_locations_of(*inputs[3:5], inputs.spatial_shapes) * sizes - 0.5
        points = inputs.sampling_offsets.shape[4]
        pixels_per_unit = 1.0 if references.shape[-1] == 2 else references[..., 2:] * 0.5 / points * sizes
    moved = pixels.floor() + (pixels - pixels.floor()).clamp(margin, 1 - margin)
    name = inputs._fields[-2]
    return inputs._replace(**{name: getattr(inputs, name) + (moved - pixels) / pixels_per_unit})


def _cast(case: Case, dtype: torch.dtype) -> Case:
    inputs = type(case.inputs)(*(t.to(dtype) if t.is_floating_point() else t for t in case.inputs))
    return case._replace(inputs=inputs, grad_output=case.grad_output.to(dtype))


def reference(case: Case) -> tuple[Tensor, ...]:
    """Output and gradients in float64, by autograd through the plain PyTorch form."""
    wide = [t.double().requires_grad_() if t.is_floating_point() else t for t in case.inputs]
    form = (
        ms_deform_attn_fused_reference if isinstance(case.inputs, FusedInputs) else ms_deform_attn_reference
    )
    out = form(wide[0], wide[1], *wide[3:], case.num_points or None)
    grads = torch.autograd.grad(out, [t for t in wide if t.is_floating_point()], case.grad_output.double())
    return out.detach(), *grads


def run(
    ops, case: Case, deterministic: bool = False, device: str = 'cpu', output_mask: tuple[bool, ...] = ()
) -> tuple[Tensor, ...]:
    """Output and gradients from the kernels: `ops` is torch.ops.ddetr_ops or torch.ops.ddetr_emulated."""
    name = 'ms_deform_attn_fused' if isinstance(case.inputs, FusedInputs) else 'ms_deform_attn'
    inputs, grad = [t.to(device) for t in case.inputs], case.grad_output.to(device)
    out = getattr(ops, f'{name}_forward')(*inputs, case.num_points)
    grads = getattr(ops, f'{name}_backward')(*inputs, grad, deterministic, case.num_points, output_mask)
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
    # Rounding a normalised location moves the point by a share of the map, not of the pixel.
    scale = max(1.0, float(case.inputs.spatial_shapes.max()) / 10)
    for name, dtype, one, other in zip(names, dtypes, got, expected, strict=True):
        assert one.dtype == dtype, name
        assert one.shape == other.shape, name
        error = error_of(one, other)
        assert error < TOLERANCES[dtype] * scale, f'{name}: {error:.1e}'


def assert_unmoved_by_hidden_neighbours(
    ops, dtype: torch.dtype, deterministic: bool, device: str = 'cpu'
) -> None:
    """NaN and infinity in a corner of coefficient zero count as zero in the location gradient and nowhere else."""
    inputs, _ = special_points()
    centres = torch.tensor(
        [[[2.5 / 8, 1.5 / 4]], [[2.5 / 8, 0.3]], [[0.7, 1.5 / 4]]]
    )  # on a centre, a column, a row
    locations = centres[None, :, None, None].to(torch.float64)
    weights = torch.full((1, 3, 1, 1, 1), 0.5, dtype=torch.float64)
    inputs = inputs._replace(sampling_locations=locations, attention_weights=weights)
    case = _cast(Case(inputs, torch.ones(1, 3, 32, dtype=torch.float64)), dtype)
    clean = run(ops, case, deterministic, device)
    # Pixels without a coefficient in any of the three points, but in a corner of one.
    hidden = [(0, 3), (1, 3), (2, 3), (2, 2), (2, 5), (2, 6)]
    results = {}
    for poison in (0.0, float('nan'), float('inf')):
        value = case.inputs.value.clone()
        grids = value.view(4, 8, 32)
        for row, column in hidden:
            grids[row, column] = poison
        poisoned = case._replace(inputs=case.inputs._replace(value=value))
        out, grad_value, grad_locations, grad_weights = run(ops, poisoned, deterministic, device)
        results[poison] = grad_locations
        assert torch.equal(out, clean[0])
        assert torch.equal(grad_value, clean[1])
        assert torch.equal(grad_weights, clean[3])
    assert all(torch.equal(results[0.0], other) for other in results.values())


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
