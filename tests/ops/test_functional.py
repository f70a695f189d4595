import pytest
import torch
from ddetr_ops import _library, ms_deform_attn, ms_deform_attn_fused
from ddetr_ops.reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    sampling_locations_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.cases import SHAPES, Inputs, by_loops, levels_of, make_fused_inputs, make_inputs

needs_kernels = pytest.mark.skipif(_library.CPU_PROBLEM is not None, reason=str(_library.CPU_PROBLEM))

# The error that storage in each dtype may cause, relative to the largest entry.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def assert_close(actual, expected, tolerance):
    scale = expected.double().abs().max().clamp(min=1e-30) if expected.numel() else torch.tensor(1.0)
    torch.testing.assert_close(
        actual.double() / scale, expected.double() / scale, atol=tolerance, rtol=0, equal_nan=True
    )


def differentiable(tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


def test_both_implementations_match_the_loops():
    inputs = make_inputs()
    expected = by_loops(inputs)
    assert_close(ms_deform_attn(*inputs), expected, 1e-13)
    reference = ms_deform_attn_reference(inputs.value, inputs.spatial_shapes, *inputs[3:])
    assert_close(reference, expected, 1e-13)


@needs_kernels
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('channels', [1, 8, 24, 32, 47])
def test_forward_and_gradients_match_the_reference(dtype, channels):
    inputs = make_inputs(channels=channels, dtype=dtype)
    value, locations, weights = differentiable((inputs.value, *inputs[3:]))
    expected = ms_deform_attn_reference(value, inputs.spatial_shapes, locations, weights)
    grad_output = torch.randn_like(expected).to(dtype)
    expected_grads = torch.autograd.grad(expected, (value, locations, weights), grad_output.double())

    leaves = [t.detach().requires_grad_() for t in (inputs.value, *inputs[3:])]
    actual = ms_deform_attn(leaves[0], *inputs[1:3], *leaves[1:])
    grads = torch.autograd.grad(actual, leaves, grad_output)
    assert actual.dtype == dtype
    assert_close(actual, expected.detach(), TOLERANCE[dtype])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, expected_grad, TOLERANCE[dtype] * 2)


@needs_kernels
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('reference_dim', [2, 4])
def test_fused_form_matches_the_reference(dtype, reference_dim):
    inputs = make_fused_inputs(reference_dim, dtype, seed=3)
    tensors = differentiable((inputs.value, *inputs[3:]))
    expected = ms_deform_attn_fused_reference(tensors[0], inputs.spatial_shapes, *tensors[1:])
    grad_output = torch.randn_like(expected).to(dtype)
    expected_grads = torch.autograd.grad(expected, tensors, grad_output.double())

    leaves = [t.detach().requires_grad_() for t in (inputs.value, *inputs[3:])]
    actual = ms_deform_attn_fused(leaves[0], *inputs[1:3], *leaves[1:])
    grads = torch.autograd.grad(actual, leaves, grad_output)
    assert actual.dtype == dtype
    assert_close(actual, expected.detach(), TOLERANCE[dtype])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert_close(grad, expected_grad, TOLERANCE[dtype] * 2)


def test_fused_form_equals_the_classic_path():
    inputs = make_fused_inputs(4, torch.float32)
    locations = sampling_locations_of(inputs.reference_points, inputs.sampling_offsets, inputs.spatial_shapes)
    weights = inputs.attention_logits.softmax(-1).view(locations.shape[:-1])
    classic = ms_deform_attn(*inputs[:3], locations, weights)
    assert_close(ms_deform_attn_fused(*inputs), classic, 1e-5)


def test_softmax_of_the_fused_form_keeps_its_range():
    """Logits far apart, and one level of one pixel so that the output is a weighted mean of known numbers."""
    value = torch.tensor([2.0, 5.0]).view(1, 2, 1, 1)
    shapes, starts = levels_of(((1, 1), (1, 1)))
    references = torch.full((1, 1, 2, 2), 0.5)
    offsets = torch.zeros(1, 1, 1, 2, 1, 2)
    for logits, expected in (
        ([0.0, 0.0], 3.5),
        ([1e4, -1e4], 2.0),
        ([-200.0, -100.0], 5.0),
        ([80.0, 80.0], 3.5),
    ):
        out = ms_deform_attn_fused(value, shapes, starts, references, offsets, torch.tensor([[[logits]]]))
        assert out.item() == pytest.approx(expected, rel=1e-6)
    logits = torch.linspace(-90, 0, 64, dtype=torch.float64).view(1, 1, 32, 2)
    many = ms_deform_attn_fused(
        torch.eye(2).view(1, 2, 1, 2).expand(1, 2, 32, 2), shapes, starts, references,
        offsets.expand(1, 1, 32, 2, 1, 2), logits.float(),
    )  # fmt: skip
    torch.testing.assert_close(
        many.view(32, 2).double(), logits.float().double().softmax(-1).view(32, 2), rtol=1e-6, atol=1e-40
    )


def gradcheck_interior(inputs: Inputs) -> Inputs:
    """Keep a distance from pixel centres and borders, where the derivative jumps."""
    sizes = inputs.spatial_shapes.flip(-1)[:, None].double()  # (L, 1, 2)
    pixels = inputs.sampling_locations * sizes - 0.5
    safe = pixels.floor() + (pixels - pixels.floor()).clamp(0.05, 0.95)
    return inputs._replace(sampling_locations=(safe + 0.5) / sizes)


@pytest.mark.parametrize('channels', [1, 8])
def test_gradcheck(channels):
    inputs = gradcheck_interior(make_inputs(batch=1, queries=3, channels=channels))
    pixels = inputs.sampling_locations * inputs.spatial_shapes.flip(-1)[:, None] - 0.5
    assert ((pixels > -1) & (pixels < 0)).any()  # some reach across a border
    leaves = differentiable((inputs.value, *inputs[3:]))
    assert torch.autograd.gradcheck(
        lambda v, x, w: ms_deform_attn(v, *inputs[1:3], x, w), leaves, eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize('reference_dim', [2, 4])
def test_gradcheck_fused(reference_dim):
    inputs = make_fused_inputs(reference_dim, batch=1, queries=3, channels=2, points=2, seed=1)
    leaves = differentiable((inputs.value, *inputs[3:]))
    assert torch.autograd.gradcheck(
        lambda v, *rest: ms_deform_attn_fused(v, *inputs[1:3], *rest), leaves, eps=1e-7, atol=1e-5
    )


@needs_kernels
@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=0, max_size=4),
    sizes=st.fixed_dictionaries(
        {
            'batch': st.integers(0, 3),
            'queries': st.integers(0, 9),
            'heads': st.integers(0, 3),
            'channels': st.integers(0, 40),
            'points': st.integers(0, 5),
            'seed': st.integers(0, 2**20),
        }
    ),
)
def test_any_shape_matches_the_reference(shapes, sizes):
    inputs = make_inputs(tuple(shapes), **sizes)
    value, locations, weights = differentiable((inputs.value, *inputs[3:]))
    expected = ms_deform_attn_reference(value, inputs.spatial_shapes, locations, weights)
    leaves = differentiable((inputs.value, *inputs[3:]))
    actual = ms_deform_attn(leaves[0], *inputs[1:3], *leaves[1:])
    assert_close(actual.detach(), expected.detach(), 1e-12)
    if not expected.requires_grad:
        expected = expected + 0 * (value.sum() + locations.sum() + weights.sum())
    grad_output = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(
        expected, (value, locations, weights), grad_output, materialize_grads=True
    )
    for grad, expected_grad in zip(
        torch.autograd.grad(actual, leaves, grad_output), expected_grads, strict=True
    ):
        assert_close(grad, expected_grad, 1e-11)


@needs_kernels
@pytest.mark.parametrize('num_points', [(3, 6, 1), (0, 70, 2), (5, 5, 5)])
@pytest.mark.parametrize('channels', [16, 40, 64, 128])
def test_levels_with_their_own_number_of_points_match_the_reference(num_points, channels):
    classic = make_inputs(points=sum(num_points), shapes=((5, 7),), channels=channels)
    shapes, starts = levels_of(SHAPES)
    value = make_inputs(channels=channels).value
    fused = make_fused_inputs(4, points=sum(num_points), shapes=((5, 7),), channels=channels)
    references = make_fused_inputs(4, channels=channels).reference_points
    points = [t.squeeze(3) for t in classic[3:]]
    fused_points = [references, fused.sampling_offsets.squeeze(3), fused.attention_logits]
    for op, reference, tensors in (
        (ms_deform_attn, ms_deform_attn_reference, [value, *points]),
        (ms_deform_attn_fused, ms_deform_attn_fused_reference, [value, *fused_points]),
    ):
        leaves, expected_leaves = differentiable(tensors), differentiable(tensors)
        actual = op(leaves[0], shapes, starts, *leaves[1:], num_points)
        expected = reference(expected_leaves[0], shapes, *expected_leaves[1:], num_points)
        assert_close(actual.detach(), expected.detach(), 1e-12)
        grad_output = torch.randn_like(expected)
        grads = torch.autograd.grad(actual, leaves, grad_output)
        expected_grads = torch.autograd.grad(expected, expected_leaves, grad_output)
        for grad, expected_grad in zip(grads, expected_grads, strict=True):
            assert_close(grad, expected_grad, 1e-11)


# ---- semantics at the borders: one map of 4 x 4 pixels, whose size divides without rounding ----
RAMP = torch.arange(1.0, 17.0).view(1, 16, 1, 1)


def sample(x_px: float, y_px: float, value=RAMP, weight=1.0):
    """Value, gradient by the location (per pixel) and by the weight of one point on a 4 x 4 map."""
    shapes, starts = levels_of(((4, 4),))
    location = ((torch.tensor([x_px, y_px]) + 0.5) / 4).view(1, 1, 1, 1, 1, 2).requires_grad_()
    weights = torch.full((1, 1, 1, 1, 1), weight, requires_grad=True)
    out = ms_deform_attn(value, shapes, starts, location, weights)
    grads = torch.autograd.grad(out, (location, weights))
    return out.item(), (grads[0].flatten() / 4).tolist(), grads[1].item()


def test_pixel_centres_give_the_pixels():
    for row in range(4):
        for column in range(4):
            assert sample(column, row)[0] == RAMP[0, 4 * row + column].item()
    value, grad, by_weight = sample(1, 2)
    assert (value, grad, by_weight) == (10.0, [1.0, 4.0], 10.0)  # the derivative towards the next pixel


@pytest.mark.parametrize(
    'point', [(-1, 1), (1, -1), (4, 1), (1, 4), (-1, -1), (4, 4), (-1.25, 1), (9, 9), (1, -30)]
)
def test_points_on_the_far_border_and_beyond_contribute_nothing(point):
    assert sample(*point) == (0.0, [0.0, 0.0], 0.0)


def test_points_across_a_border_see_zeros_outside():
    assert sample(-0.5, 0) == (0.5, [1.0, 2.0], 0.5)
    assert sample(3.5, 0) == (2.0, [-4.0, 2.0], 2.0)
    assert sample(-0.75, -0.75)[0] == 1 / 16


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), float('-inf'), 1e30, -1e30])
def test_nan_locations_contribute_nothing(bad):
    assert sample(bad, 1) == (0.0, [0.0, 0.0], 0.0)
    assert sample(1, bad) == (0.0, [0.0, 0.0], 0.0)


def test_nan_weights_only_affect_their_query_head_and_level():
    inputs = make_inputs(batch=1, queries=3, dtype=torch.float32)
    locations = inputs.sampling_locations.clamp(0.2, 0.8).contiguous()
    weights = inputs.attention_weights.clone()
    clean = ms_deform_attn(*inputs[:3], locations, weights).view(3, 2, 8)
    weights[0, 1, 0, 0, 0] = float('nan')
    out = ms_deform_attn(*inputs[:3], locations, weights).view(3, 2, 8)
    assert out[1, 0].isnan().all()
    keep = torch.ones(3, 2, dtype=torch.bool)
    keep[1, 0] = False
    assert torch.equal(out[keep], clean[keep])
    assert sample(-1.5, 1, weight=float('nan')) == (0.0, [0.0, 0.0], 0.0)  # outside: never looked at


def test_nan_values_outside_the_sampled_cell_are_not_read():
    value = RAMP.clone()
    value[0, 0] = float('nan')
    assert sample(-3, -3, value) == (0.0, [0.0, 0.0], 0.0)
    assert sample(2, 2, value)[0] == 11.0


# ---- forms of the arguments ----
def test_empty_batch_and_no_query_give_empty_results():
    for sizes in ({'batch': 0}, {'queries': 0}):
        inputs = make_inputs(**sizes)
        leaves = differentiable((inputs.value, *inputs[3:]))
        out = ms_deform_attn(leaves[0], *inputs[1:3], *leaves[1:])
        assert out.shape == (*inputs.attention_weights.shape[:2], 16)
        out.sum().backward()
        assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves)


def test_int32_shapes_and_strided_views_change_nothing():
    inputs = make_inputs(dtype=torch.float32)
    expected = ms_deform_attn(*inputs)
    as_int32 = inputs._replace(
        spatial_shapes=inputs.spatial_shapes.int(), level_start_index=inputs.level_start_index.int()
    )
    assert torch.equal(ms_deform_attn(*as_int32), expected)
    padded = torch.stack([inputs.value, inputs.value + 9], -1)[..., 0]
    turned = inputs.sampling_locations.transpose(1, 2).contiguous().transpose(1, 2)
    assert not padded.is_contiguous()
    assert not turned.is_contiguous()
    strided = ms_deform_attn(padded, *inputs[1:3], turned, inputs.attention_weights)
    assert torch.equal(strided, expected)
    raw = torch.ops.ddetr_ops.ms_deform_attn_forward if _library.CPU_PROBLEM is None else ms_deform_attn
    assert torch.equal(raw(padded, *inputs[1:3], turned, inputs.attention_weights), expected)


def test_expanded_views_get_summed_gradients():
    inputs = make_inputs(batch=1)
    value = inputs.value.clone().requires_grad_()
    twice = ms_deform_attn(
        value.expand(2, -1, -1, -1), *inputs[1:3], *(t.expand(2, *t.shape[1:]) for t in inputs[3:])
    )
    (grad,) = torch.autograd.grad(twice.sum(), value)
    once = ms_deform_attn(value, *inputs[1:])
    assert torch.equal(twice[0], once[0])
    torch.testing.assert_close(grad, 2 * torch.autograd.grad(once.sum(), value)[0])


def test_float32_locations_work_with_a_bfloat16_value():
    inputs = make_inputs(dtype=torch.float32, channels=32)
    value = inputs.value.bfloat16()
    exact = ms_deform_attn(value.double(), *inputs[1:3], *(t.double() for t in inputs[3:]))
    out = ms_deform_attn(value, *inputs[1:])
    assert out.dtype == torch.bfloat16
    # Nothing but the rounding of the result: half a unit in the last of 8 bits.
    assert ((out.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@needs_kernels
def test_values_beyond_2_to_the_31_elements_are_addressed_correctly():
    """4.3 GiB of address space, of which two pages are ever touched."""
    shapes, starts = levels_of(((1024, 4096), (1, 2)))
    value = torch.empty(1, 2**22 + 2, 2, 257, dtype=torch.bfloat16)
    assert value.numel() > 2**31
    value[0, -1] = 3.0
    value[0, -2] = 5.0
    locations = torch.full((1, 1, 2, 2, 1, 2), 0.5)
    weights = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2, 1).expand(1, 1, 2, 2, 1)
    locations[:, :, :, 0] = -9.0
    assert torch.equal(
        ms_deform_attn(value, shapes, starts, locations, weights), torch.full((1, 1, 514), 4.0).bfloat16()
    )


def wrong(**changes):
    inputs = make_inputs()._asdict()
    inputs.update(changes)
    return Inputs(**inputs)


GOOD = make_inputs()


@needs_kernels
@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (wrong(value=GOOD.value[:, :-1]), 'describe 48 tokens, but value has 47'),
        (wrong(value=GOOD.value[0]), r'value must have the shape \(B, S, M, D\), got \(48, 2, 8\)'),
        (wrong(value=GOOD.value[:1]), r'sampling_locations must .* = \(1, 6, 2, 3, 3, 2\), got \(2, 6, 2, 3, 3, 2\)'),
        (wrong(value=GOOD.value.float()), 'sampling_locations is Double, but with a value of Float'),
        (wrong(value=GOOD.value.long()), 'value must be float32, float64, bfloat16 or float16, got Long'),
        (wrong(attention_weights=GOOD.attention_weights[..., :2]), r'attention_weights must .* got \(2, 6, 2, 3, 2\)'),
        (wrong(sampling_locations=GOOD.sampling_locations[..., :1]), r'\(B, Q, M, L, P, 2\), got .*, 1\)'),
        (wrong(spatial_shapes=GOOD.spatial_shapes[:2]), r'sampling_locations must .* = \(2, 6, 2, 2, 3, 2\)'),
        (wrong(spatial_shapes=-GOOD.spatial_shapes), r'spatial_shapes\[0\] = \(-5, -7\) is not the size of a map'),
        (wrong(spatial_shapes=GOOD.spatial_shapes[..., :1]), r'spatial_shapes must have the shape \(L, 2\)'),
        (wrong(level_start_index=GOOD.level_start_index + 1), r'level_start_index\[0\] must be 0'),
        (wrong(level_start_index=GOOD.level_start_index[:2]), 'one entry for each of the 3 levels'),
    ],
)  # fmt: skip
def test_wrong_input_raises(inputs, message):
    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn(*inputs)


@needs_kernels
def test_wrong_input_of_the_fused_form_raises():
    inputs = make_fused_inputs()
    with pytest.raises(
        RuntimeError, match=r'reference_points must have the shape \(B, Q, L, 2 or 4\), got \(2, 6, 3, 3\)'
    ):
        ms_deform_attn_fused(*inputs[:3], torch.rand(2, 6, 3, 3).double(), *inputs[4:])
    with pytest.raises(RuntimeError, match=r'attention_logits must .* = \(2, 6, 2, 9\), got \(2, 6, 2, 8\)'):
        ms_deform_attn_fused(*inputs[:5], inputs.attention_logits[..., :8])


def test_non_integer_shapes_raise():
    with pytest.raises(TypeError, match=r'must be int64 or int32 tensors, got torch.float32'):
        ms_deform_attn(*GOOD._replace(spatial_shapes=GOOD.spatial_shapes.float()))


@needs_kernels
def test_wrong_gradient_raises():
    backward = torch.ops.ddetr_ops.ms_deform_attn_backward
    with pytest.raises(
        RuntimeError, match=r'grad_output must have the shape .* = \(2, 6, 16\), got \(2, 6, 15\)'
    ):
        backward(*GOOD, torch.zeros(2, 6, 15).double(), False)
    with pytest.raises(RuntimeError, match='grad_output is Float, value is Double'):
        backward(*GOOD, torch.zeros(2, 6, 16), False)


# ---- the same numbers on every machine ----
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    """Up to more threads than heads and levels: some then share one level's map."""
    inputs = make_inputs(queries=300, channels=32, dtype=dtype)
    fused = make_fused_inputs(4, queries=300, channels=32, dtype=dtype)
    grad_output = torch.randn(2, 300, 64).to(dtype)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5, 40):
            torch.set_num_threads(count)
            results.append([])
            for op, (value, shapes, starts, *points) in (
                (ms_deform_attn, inputs),
                (ms_deform_attn_fused, fused),
            ):
                leaves = [t.clone().requires_grad_() for t in (value, *points)]
                out = op(leaves[0], shapes, starts, *leaves[1:])
                results[-1] += [out, *torch.autograd.grad(out, leaves, grad_output)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
