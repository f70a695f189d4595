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
    assert_unmoved_by_hidden_neighbours,
    error_of,
    make_case,
    make_uneven_case,
    random_case,
    reference,
    run,
    special_points,
)

# Without a GPU the file is one line in the report, not one for each of its cases.
if not torch.cuda.is_available():
    pytest.skip('there is no CUDA device', allow_module_level=True)
if _library.CUDA_PROBLEM is not None:
    pytest.skip(_library.CUDA_PROBLEM, allow_module_level=True)
pytestmark = pytest.mark.gpu
# Enough queries to merge their additions at the default threshold.
BIG = {
    'D=32, 1100 queries': KNOWN | {'queries': 1100},
    'vectors, 1030 queries': {'channels': 24, 'queries': 1030},
}


@pytest.fixture(params=['direct', 'merged'])
def scatter(request, monkeypatch):
    """Whether the backward merges additions to grad_value, from 40 queries on."""
    monkeypatch.setenv('DDETR_OPS_MERGE_MIN_QUERIES', '40' if request.param == 'merged' else str(1 << 40))


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('reference_dim', [0, 2, 4])
@pytest.mark.parametrize('sizes', (SIZES | BIG).values(), ids=SIZES | BIG)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_kernels_equal_float64_on_the_cpu(dtype, sizes, reference_dim, deterministic, scatter):
    case = make_case(sizes, dtype, reference_dim)
    assert_matches(run(torch.ops.ddetr_ops, case, deterministic, 'cuda'), reference(case), case)


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('seed', range(20))
def test_random_sizes(seed, deterministic, scatter):
    case = random_case(seed)
    assert_matches(run(torch.ops.ddetr_ops, case, deterministic, 'cuda'), reference(case), case)


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('reference_dim', [0, 2, 4])
def test_levels_with_different_numbers_of_points(reference_dim, deterministic, scatter):
    case = make_uneven_case((3, 6, 3), torch.float32, reference_dim, queries=50, channels=32)
    assert_matches(run(torch.ops.ddetr_ops, case, deterministic, 'cuda'), reference(case), case)


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_without_a_coefficient_do_not_count(dtype, deterministic):
    assert_unmoved_by_hidden_neighbours(torch.ops.ddetr_ops, dtype, deterministic, 'cuda')


def test_more_points_than_shared_memory_holds():
    case = make_case(
        {'shapes': ((4, 5), (2, 3)), 'points': 600, 'queries': 9, 'channels': 32}, torch.float32, 4
    )
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
def test_empty_inputs_give_zeros(empty):
    case = make_case(empty, torch.float32, 0)
    likes = [case.grad_output, *(t for t in case.inputs if t.is_floating_point())]
    for one, like in zip(run(torch.ops.ddetr_ops, case, device='cuda'), likes, strict=True):
        assert one.shape == like.shape
        assert not one.any()


def test_tensors_on_different_devices_raise():
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


def _differentiable(function, dtype=torch.float32):
    """Inputs on the GPU whose floating-point tensors require gradients."""
    make = make_inputs if function is ms_deform_attn else make_fused_inputs
    return [t.cuda().requires_grad_(t.is_floating_point()) for t in make(**KNOWN, queries=50, dtype=dtype)]


def _forward_and_gradients(function, inputs):
    out = function(*inputs)
    leaves = [t for t in inputs if t.is_floating_point()]
    return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]


FUNCTIONS = pytest.mark.parametrize('function', [ms_deform_attn, ms_deform_attn_fused])


@FUNCTIONS
def test_graph_replay_equals_the_eager_call(function):
    inputs = _differentiable(function)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm up, as PyTorch's manual asks
        for _ in range(3):
            _forward_and_gradients(function, inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _forward_and_gradients(function, inputs)
    with torch.no_grad():
        inputs[0].mul_(-0.5)
    graph.replay()
    for one, other in zip(captured, _forward_and_gradients(function, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@FUNCTIONS
def test_graph_replay_of_the_deterministic_backward(function):
    inputs = _differentiable(function)
    torch.use_deterministic_algorithms(True)
    try:
        eager = _forward_and_gradients(function, inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = _forward_and_gradients(function, inputs)
        graph.replay()
        torch.cuda.synchronize()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(captured, eager, strict=True):
        assert torch.equal(one, other)


@FUNCTIONS
def test_compiles_without_a_graph_break(function):
    inputs = _differentiable(function)
    compiled = torch.compile(lambda *tensors: function(*tensors) * 2, fullgraph=True)
    for one, other in zip(
        _forward_and_gradients(compiled, inputs),
        _forward_and_gradients(lambda *tensors: function(*tensors) * 2, inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@FUNCTIONS
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_autocast_stores_value_in_the_low_precision(function, dtype):
    inputs = _differentiable(function)
    with torch.autocast('cuda', dtype):
        got = _forward_and_gradients(function, inputs)
    expected = function(inputs[0].to(dtype), *inputs[1:])
    assert got[0].dtype == dtype
    torch.testing.assert_close(got[0], expected)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in got[1:])


@FUNCTIONS
@pytest.mark.parametrize('num_points', [(), (3, 6, 3)], ids=['same points', 'uneven points'])
def test_operators_pass_opcheck(function, num_points):
    dim = 0 if function is ms_deform_attn else 4
    case = make_uneven_case(num_points or (4, 4), torch.float32, dim, queries=6, channels=8)
    inputs = [t.cuda().requires_grad_(t.is_floating_point()) for t in case.inputs]
    name = 'ms_deform_attn_fused' if dim else 'ms_deform_attn'
    torch.library.opcheck(getattr(torch.ops.ddetr_ops, f'{name}_forward').default, (*inputs, case.num_points))
    tensors = [t.detach() for t in inputs]
    torch.library.opcheck(
        getattr(torch.ops.ddetr_ops, f'{name}_backward').default,
        (*tensors, case.grad_output.cuda(), False, case.num_points, (True,) * (4 if dim else 3)),
        test_utils=('test_schema', 'test_faketensor'),
    )


def test_small_cases_for_the_sanitizers(monkeypatch):
    """Every kernel once, in sizes that compute-sanitizer gets through in minutes (ops/gpu_check.sh)."""
    monkeypatch.setenv('DDETR_OPS_MERGE_MIN_QUERIES', '40')
    for dtype in (torch.float32, torch.bfloat16):
        for sizes in SIZES.values():
            for reference_dim, deterministic in ((0, False), (4, False), (2, True)):
                case = make_case(sizes, dtype, reference_dim)
                got = run(torch.ops.ddetr_ops, case, deterministic, 'cuda')
                assert_matches(got, reference(case), case)


def test_merging_1030_queries_for_the_sanitizers(monkeypatch):
    monkeypatch.setenv('DDETR_OPS_MERGE_MIN_QUERIES', '1024')
    for dtype in (torch.float32, torch.float16):
        case = make_case(KNOWN | {'queries': 1030, 'batch': 1}, dtype, 2)
        assert_matches(run(torch.ops.ddetr_ops, case, device='cuda'), reference(case), case)


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
