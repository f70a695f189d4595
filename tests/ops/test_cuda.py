"""The operators on a real GPU, through the public functions and below them. Skipped where there is none."""

import pytest
import torch
from ddetr_ops import _library, ms_deform_attn, ms_deform_attn_fused

from tests.ops.cases import make_fused_inputs, make_inputs
from tests.ops.cuda_checks import (
    KNOWN,
    SIZES,
    Case,
    assert_matches,
    error_of,
    make_case,
    reference,
    run,
    special_points,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device'),
    pytest.mark.skipif(_library.CUDA_PROBLEM is not None, reason=str(_library.CUDA_PROBLEM)),
]
# Enough queries that the backward merges (1024 and more), too, and all kernels that launch.h knows.
BIG = {
    'known, really merged': KNOWN | {'queries': 1100},
    'vectors, really merged': {'channels': 24, 'queries': 1030},
}


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('reference_dim', [0, 2, 4])
@pytest.mark.parametrize('sizes', (SIZES | BIG).values(), ids=SIZES | BIG)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_kernels_equal_float64_on_the_cpu(dtype, sizes, reference_dim, deterministic):
    case = make_case(sizes, dtype, reference_dim)
    assert_matches(run(torch.ops.ddetr_ops, case, deterministic, 'cuda'), reference(case), case)


@pytest.mark.parametrize('seed', range(20))
def test_random_sizes(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    shapes = tuple((pick(1, 40), pick(1, 40)) for _ in range(pick(1, 5)))
    sizes = {'shapes': shapes, 'batch': pick(1, 3), 'queries': pick(1, 2000), 'heads': pick(1, 8)}
    sizes |= {'channels': pick(1, 70), 'points': pick(1, 9)}
    case = make_case(sizes, torch.float32, 2 * pick(0, 2))
    assert_matches(run(torch.ops.ddetr_ops, case, device='cuda'), reference(case), case)


def test_16_bit_values_with_32_bit_points():
    for reference_dim in (0, 2):
        case = make_case(KNOWN | {'queries': 50}, torch.bfloat16, reference_dim, points_dtype=torch.float32)
        assert_matches(run(torch.ops.ddetr_ops, case, device='cuda'), reference(case), case)


def test_autograd_equals_the_cpu_kernels():
    for function, inputs in ((ms_deform_attn, make_inputs()), (ms_deform_attn_fused, make_fused_inputs(4))):
        results = {}
        for device in ('cpu', 'cuda'):
            moved = [t.to(device) for t in inputs]
            leaves = [t.requires_grad_() for t in moved if t.is_floating_point()]
            out = function(*moved)
            results[device] = [out, *torch.autograd.grad(out.square().sum(), leaves)]
        for one, other in zip(results['cuda'], results['cpu'], strict=True):
            torch.testing.assert_close(one.cpu(), other)


def test_locations_on_and_beyond_the_borders():
    inputs, counts = special_points()
    for dtype in (torch.float64, torch.float32):
        typed = inputs._replace(
            value=inputs.value.to(dtype), sampling_locations=inputs.sampling_locations.to(dtype)
        )
        typed = typed._replace(attention_weights=inputs.attention_weights.to(dtype))
        case = Case(typed, torch.ones(1, len(counts), 32, dtype=dtype))
        got = run(torch.ops.ddetr_ops, case, device='cuda')
        assert_matches(got, reference(case), case)
        assert [bool(row.any()) for row in got[0][0]] == counts


def test_integer_and_cpu_shapes_and_strided_tensors():
    inputs = make_inputs(**KNOWN, queries=9)
    expected = ms_deform_attn(*inputs)
    value = inputs.value.cuda().transpose(1, 2).contiguous().transpose(1, 2)
    weights = torch.stack([inputs.attention_weights.cuda()] * 2, -1)[..., 1]
    locations = inputs.sampling_locations.cuda()
    got = ms_deform_attn(
        value, inputs.spatial_shapes.int(), inputs.level_start_index.int().cuda(), locations, weights
    )
    torch.testing.assert_close(got.cpu(), expected)


@pytest.mark.parametrize('empty', [{'batch': 0}, {'queries': 0}, {'points': 0}, {'shapes': ((0, 0),)}])
def test_nothing_to_do_gives_zeros(empty):
    case = make_case(empty, torch.float32, 0)
    likes = [case.grad_output, *(t for t in case.inputs if t.is_floating_point())]
    for one, like in zip(run(torch.ops.ddetr_ops, case, device='cuda'), likes, strict=True):
        assert one.shape == like.shape
        assert not one.any()


def test_tensors_on_different_devices_are_named():
    inputs = make_inputs()
    with pytest.raises(RuntimeError, match='sampling_locations must be on the same device as value'):
        ms_deform_attn(inputs.value.cuda(), *inputs[1:])


def test_deterministic_algorithms_repeat_bit_for_bit():
    # Two levels of a few pixels, thousands of additions to each: an order that changes would show.
    inputs = [t.cuda() for t in make_inputs(((1, 2), (3, 3)), queries=5000, channels=32, dtype=torch.float32)]
    inputs[0].requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        grads = [torch.autograd.grad(ms_deform_attn(*inputs).square().sum(), inputs[0])[0] for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(grads[0], other) for other in grads[1:])
    plain = torch.autograd.grad(ms_deform_attn(*inputs).square().sum(), inputs[0])[0]
    assert error_of(plain, grads[0].cpu().double()) < 1e-5


def test_runs_on_the_current_stream():
    """Kernels queued behind a long-running one on a side stream see what that one wrote."""
    inputs = make_inputs(**KNOWN, queries=2000, dtype=torch.float32)
    expected = ms_deform_attn(*inputs)
    moved = [t.cuda() for t in inputs]
    blank = torch.zeros_like(moved[0])
    big = torch.randn(4096, 4096, device='cuda')
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(10):
            big = big @ big * 1e-3
        blank.copy_(moved[0] + 0 * big[0, 0].nan_to_num(0, 0, 0))
        out = ms_deform_attn(blank, *moved[1:])
    stream.synchronize()
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there is one CUDA device')
def test_second_gpu():
    case = make_case(KNOWN | {'queries': 30}, torch.float32, 0)
    assert torch.cuda.current_device() == 0
    assert_matches(run(torch.ops.ddetr_ops, case, device='cuda:1'), reference(case), case)
    assert torch.cuda.current_device() == 0


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """The last batch element's rows lie beyond 2^31: they must be its own."""
    if torch.cuda.mem_get_info()[0] < 12 << 30:
        pytest.skip('needs 12 GiB of free GPU memory')
    side, heads, channels = 1024, 8, 32
    value = torch.zeros(9, side * side, heads, channels, dtype=torch.float16, device='cuda')  # 2.4e9 elements
    value[-1] = torch.randn(side * side, heads, channels, device='cuda')
    shapes, starts = torch.tensor([[side, side]]).cuda(), torch.tensor([0]).cuda()
    locations = torch.rand(9, 64, heads, 1, 4, 2, device='cuda')
    weights = torch.rand(9, 64, heads, 1, 4, device='cuda')
    out = ms_deform_attn(value, shapes, starts, locations, weights)
    last = ms_deform_attn(value[-1:].clone(), shapes, starts, locations[-1:], weights[-1:])
    assert not out[:-1].any()
    assert torch.equal(out[-1:], last)
