"""NaN and infinity in `value`: they reach the results of the points that read them, and no others."""

import pytest
import torch
from ddetr_ops import _library, ms_deform_attn, ms_deform_attn_fused
from ddetr_ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases import Inputs, by_loops, levels_of

SHAPES = ((4, 4), (2, 8), (8, 2), (1, 1))  # powers of two: pixel centres are exact in every dtype
BATCH, QUERIES, HEADS, POINTS = 2, 3, 2, 2
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BAD = (float('nan'), float('inf'), -float('inf'))
ANYWHERE = torch.tensor(True)
IMPLEMENTATIONS = ['reference'] + (['kernels'] if _library.CPU_PROBLEM is None else [])

cases = given(
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from(DTYPES),
    channels=st.sampled_from([1, 3, 8, 16, 33]),
    centred=st.sampled_from([0.0, 0.5, 1.0]),
)


def sizes_of_levels() -> torch.Tensor:
    return torch.tensor(SHAPES).flip(-1)[:, None].double()  # (L, 1, 2), w and h


def draw(seed, dtype, channels, centred):
    """Inputs whose points lie on quarters of a pixel, within two pixels of the map; their pixel coordinates."""
    generator = torch.Generator().manual_seed(seed)
    shapes, starts = levels_of(SHAPES)
    size = (BATCH, QUERIES, HEADS, len(SHAPES), POINTS, 2)
    sizes = sizes_of_levels()
    pixels = (torch.rand(size, generator=generator) * (sizes + 3) * 4).floor() / 4 - 2  # (B, Q, M, L, P, 2)
    on_centre = torch.rand(size, generator=generator) < centred
    pixels = torch.where(on_centre, pixels.round(), pixels).double()
    value = torch.randn(BATCH, int(shapes.prod(1).sum()), HEADS, channels, generator=generator).to(dtype)
    weights = torch.rand(size[:-1], generator=generator).to(dtype)
    return Inputs(value, shapes, starts, ((pixels + 0.5) / sizes).to(dtype), weights), pixels


def read_tokens(pixels):
    """(B, S, M): whether any point has a coefficient other than zero for the token; in Python's numbers."""
    shapes, starts = levels_of(SHAPES)
    read = torch.zeros(BATCH, int(shapes.prod(1).sum()), HEADS, dtype=torch.bool)
    for b, q, m, level, p in torch.cartesian_prod(*map(torch.arange, pixels.shape[:-1])).tolist():
        (height, width), (x, y) = SHAPES[level], pixels[b, q, m, level, p].tolist()
        for token in range(height * width):
            row, column = divmod(token, width)
            if abs(x - column) < 1 and abs(y - row) < 1:
                read[b, starts[level] + token, m] = True
    return read


def plant(value, where, seed, density):
    """NaN or infinity in one channel of some of the rows (b, s, m) that `where` allows."""
    generator = torch.Generator().manual_seed(seed)
    value = value.clone()
    planted = where & (torch.rand(value.shape[:3], generator=generator) < density)
    for b, s, m in planted.nonzero().tolist():
        channel = int(torch.randint(value.shape[3], (1,), generator=generator))
        value[b, s, m, channel] = BAD[int(torch.randint(3, (1,), generator=generator))]
    return value, planted


def run(implementation, inputs, fused=None):
    """Output and gradients; `fused`: reference points and offsets that give the same locations."""
    leaves = [t.detach().requires_grad_() for t in (inputs.value, *(fused or inputs[3:]))]
    if implementation == 'reference' and fused:
        out = ms_deform_attn_fused_reference(leaves[0], inputs.spatial_shapes, *leaves[1:])
    elif implementation == 'reference':
        out = ms_deform_attn_reference(leaves[0], inputs.spatial_shapes, *leaves[1:])
    else:
        out = (ms_deform_attn_fused if fused else ms_deform_attn)(leaves[0], *inputs[1:3], *leaves[1:])
    grad_output = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, leaves, grad_output)


def fused_inputs(inputs, pixels, reference_dim):
    """Reference points in the middle of every map, and offsets from there in pixels or in box sizes."""
    sizes = sizes_of_levels()
    offsets = pixels - (sizes * 0.5 - 0.5)
    references = torch.full((BATCH, QUERIES, len(SHAPES), reference_dim), 0.5, dtype=torch.float64)
    if reference_dim == 4:
        offsets = offsets / (sizes * 0.5 * 0.5 / POINTS)
    dtype = inputs.value.dtype
    references = references.to(dtype if dtype == torch.float64 else torch.float32)
    return references, offsets.to(dtype), inputs.attention_weights.flatten(3)


def assert_same_where_finite(actual, expected, tolerance):
    """Finite in the same places, and equal there. An infinity that is read may become a NaN: the kernels give a
    corner outside the map the coefficient zero and the row of a corner inside."""
    finite = expected.isfinite()
    assert torch.equal(actual.isfinite(), finite)
    torch.testing.assert_close(
        actual[finite].double(), expected[finite].double(), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('form', ['classic', 'points', 'boxes'])
@settings(max_examples=30, deadline=None)
@cases
def test_rows_that_no_point_reads_count_as_zeros(implementation, form, seed, dtype, channels, centred):
    inputs, pixels = draw(seed, dtype, channels, centred)
    fused = None if form == 'classic' else fused_inputs(inputs, pixels, 2 if form == 'points' else 4)
    value, planted = plant(inputs.value, ~read_tokens(pixels), seed, 0.5)
    zeroed = torch.where(planted[..., None], 0.0, value)
    results = run(implementation, inputs._replace(value=value), fused)
    for actual, expected in zip(
        results, run(implementation, inputs._replace(value=zeroed), fused), strict=True
    ):
        assert actual.isfinite().all()
        # Kernels: the same bits. The reference takes another path, in another order of additions.
        tolerance = 0 if implementation == 'kernels' else 64 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@settings(max_examples=30, deadline=None)
@cases
def test_outputs_equal_the_loops(implementation, seed, dtype, channels, centred):
    inputs, _ = draw(seed, dtype, channels, centred)
    value, _ = plant(inputs.value, ANYWHERE, seed, 0.2)
    inputs = inputs._replace(value=value)
    expected = by_loops(inputs)
    assert_same_where_finite(run(implementation, inputs)[0], expected, 8 * torch.finfo(dtype).eps)


@pytest.mark.skipif(_library.CPU_PROBLEM is not None, reason=str(_library.CPU_PROBLEM))
@settings(max_examples=60, deadline=None)
@cases
def test_gradients_of_the_kernels_match_the_reference(seed, dtype, channels, centred):
    inputs, pixels = draw(seed, dtype, channels, centred)
    value, _ = plant(inputs.value, ANYWHERE, seed, 0.2)
    inputs = inputs._replace(value=value)
    wide = Inputs(*(t.double() if t.is_floating_point() else t for t in inputs))
    tolerance = 664 * torch.finfo(dtype).eps
    for fused in (None, fused_inputs(inputs, pixels, 4)):
        expected = run('reference', wide, fused and tuple(t.double() for t in fused))
        for actual, grad in zip(run('kernels', inputs, fused)[1:], expected[1:], strict=True):
            assert_same_where_finite(actual, grad, tolerance)
