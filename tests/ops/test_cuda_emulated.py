"""The CUDA kernels without a GPU: compiled by the host's compiler and run by emulated threads (emulation/).

Everything of `_C_cuda` takes part but the CUDA runtime: checks, choice of kernel, launch sizes, kernel bodies.
"""

import math
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tests.ops.cases import make_fused_inputs
from tests.ops.cuda_checks import (
    KNOWN,
    SIZES,
    Case,
    assert_matches,
    assert_unmoved_by_hidden_neighbours,
    make_case,
    make_uneven_case,
    random_case,
    reference,
    run,
    special_points,
)

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / 'ops' / 'csrc' / 'cuda'
EMULATION = Path(__file__).resolve().parent / 'emulation'
CXX = os.environ.get('CXX', 'c++')
FLAGS = ['-std=c++20', '-x', 'c++', '-O1', '-Wno-unknown-pragmas', '-Dddetr_ops=ddetr_emulated']
FLAGS += [f'-I{EMULATION}', f'-I{CUDA.parent}']

pytestmark = pytest.mark.skipif(shutil.which(CXX) is None, reason='there is no C++ compiler')


def _compile(folder: Path, sources: list[tuple[Path, list[str]]]) -> list[str]:
    """Objects of the sources, each with flags of its own."""

    def one(source: Path, flags: list[str]) -> str:
        target = str(folder / f'{source.name}.o')
        command = [CXX, *FLAGS, *flags, '-c', str(source), '-o', target]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return target

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda pair: one(*pair), sources))


@pytest.fixture(scope='module')
def emulated(tmp_path_factory):
    """`torch.ops.ddetr_emulated`. fp16 adds to memory as GPUs before sm_90 do, one number at a time."""
    folder = tmp_path_factory.mktemp('emulated')
    torch_folder = Path(torch.__file__).parent
    flags = ['-fPIC', '-fvisibility=hidden', '-DTORCH_TARGET_VERSION=0x020A000000000000']
    flags += ['-isystem', str(torch_folder / 'include')]
    archs = {'float': 900, 'half': 800, 'bfloat16': 900, 'double': 900}
    sources = [(CUDA / f'{t}.cu', [*flags, f'-D__CUDA_ARCH__={arch}']) for t, arch in archs.items()]
    sources += [(EMULATION / name, flags) for name in ('emulated_ops.cpp', 'sort.cpp')]
    library = str(folder / 'emulated.so')
    objects = _compile(folder, sources)
    subprocess.run(
        [CXX, '-shared', *objects, '-o', library, f'-L{torch_folder / "lib"}', '-ltorch_cpu'], check=True
    )
    torch.ops.load_library(library)
    return torch.ops.ddetr_emulated


@pytest.fixture(autouse=True)
def _merge_from_40_queries(monkeypatch):
    """Small cases reach the merging kernels, too."""
    monkeypatch.setenv('DDETR_OPS_MERGE_MIN_QUERIES', '40')


@pytest.mark.parametrize('reference_dim', [0, 2, 4])
@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16], ids=['fp32', 'fp16'])
def test_kernels_equal_autograd_through_the_reference(emulated, dtype, sizes, reference_dim):
    case = make_case(sizes, dtype, reference_dim)
    assert_matches(run(emulated, case), reference(case), case)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16], ids=['fp64', 'bf16'])
def test_other_types(emulated, dtype):
    for sizes, reference_dim in (
        (KNOWN | {'queries': 5}, 0),
        (KNOWN | {'queries': 41}, 4),
        (SIZES['odd channels'], 2),
    ):
        case = make_case(sizes, dtype, reference_dim)
        assert_matches(run(emulated, case), reference(case), case)


@pytest.mark.parametrize('seed', range(20))
def test_random_cases_meet_the_tolerances_in_float32(seed):
    """The cases of test_cuda.py::test_random_sizes, on the CPU kernels."""
    case = random_case(seed)
    assert_matches(run(torch.ops.ddetr_ops, case), reference(case), case)


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('reference_dim', [0, 2, 4])
@pytest.mark.parametrize('num_points', [(3, 6, 3), (1, 0, 9, 4)], ids=str)
def test_levels_with_different_numbers_of_points(emulated, num_points, reference_dim, deterministic):
    for dtype, queries in ((torch.float32, 5), (torch.float32, 41), (torch.float16, 5)):
        case = make_uneven_case(num_points, dtype, reference_dim, queries=queries, channels=32)
        assert_matches(run(emulated, case, deterministic), reference(case), case)


def test_more_uneven_levels_than_launch_parameters_can_hold_raise(emulated):
    inputs = make_fused_inputs(shapes=((1, 1),) * 33, points=2, queries=2, dtype=torch.float32)
    inputs = inputs._replace(
        sampling_offsets=inputs.sampling_offsets.flatten(3, 4)[:, :, :, :65],
        attention_logits=inputs.attention_logits[..., :65],
    )
    with pytest.raises(RuntimeError, match='levels that differ in num_points = 33 is more than the 32'):
        emulated.ms_deform_attn_fused_forward(*inputs, [2] * 32 + [1])


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('reference_dim', [0, 4])
def test_only_the_gradients_that_are_asked_for(emulated, reference_dim, deterministic):
    for queries in (5, 41):  # direct, merged
        case = make_case(KNOWN | {'queries': queries}, torch.float32, reference_dim)
        complete = run(emulated, case, deterministic)[1:]
        for wanted in range(len(complete)):
            mask = tuple(i == wanted for i in range(len(complete)))
            before = emulated.reductions()
            grads = run(emulated, case, deterministic, output_mask=mask)[1:]
            added = emulated.reductions() - before
            assert (added > 0) == (mask[0] and not deterministic)
            for grad, whole, is_wanted in zip(grads, complete, mask, strict=True):
                assert grad.numel() == (whole.numel() if is_wanted else 0)
                if is_wanted:
                    torch.testing.assert_close(grad, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['fp32', 'bf16'])
def test_values_without_a_coefficient_do_not_count(emulated, dtype, deterministic):
    assert_unmoved_by_hidden_neighbours(emulated, dtype, deterministic)


def test_more_points_than_shared_memory_holds(emulated):
    """The fused backward keeps the gradients of 1,200 weights per query and head in global memory."""
    sizes = {'shapes': ((4, 5), (2, 3)), 'points': 600, 'queries': 3, 'batch': 1, 'channels': 32}
    case = make_case(sizes, torch.float32, 4)
    assert_matches(run(emulated, case), reference(case), case)


def test_overlapping_levels_are_summed_in_order(emulated):
    """Both levels are the same tokens; sorted by token, a point still counts for its own level only."""
    case = make_case({'shapes': ((4, 6), (3, 8)), 'queries': 7, 'channels': 16}, torch.float32, 0)
    inputs = case.inputs._replace(
        value=case.inputs.value[:, :24].contiguous(), level_start_index=torch.tensor([0, 0])
    )
    plain, ordered = (run(emulated, case._replace(inputs=inputs), d) for d in (False, True))
    for one, other in zip(plain, ordered, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_driver_older_than_the_runtime_raises(emulated):
    case = make_case(KNOWN | {'queries': 3}, torch.float32, 0)
    emulated.set_driver_version(12060)
    try:
        with pytest.raises(
            RuntimeError, match=r'driver supports CUDA 12\.6, .* nvcc of CUDA 13\.0.* CUDA 12\.x'
        ):
            run(emulated, case)
    finally:
        emulated.set_driver_version(13000)


def test_16_bit_values_with_32_bit_points(emulated):
    for reference_dim in (0, 2):
        case = make_case(KNOWN | {'queries': 5}, torch.bfloat16, reference_dim, points_dtype=torch.float32)
        assert_matches(run(emulated, case), reference(case), case)


def test_deterministic_sums_do_not_depend_on_the_order_of_threads(emulated):
    # A level of one pixel: all queries add to the same token, and float32 sums tell every order apart.
    sizes = {'shapes': ((1, 1), (7, 6)), 'channels': 32, 'points': 4, 'queries': 70, 'heads': 1}
    for reference_dim in (0, 4):
        case = make_case(sizes, torch.float32, reference_dim)
        first, second = (run(emulated, case, deterministic=True) for _ in range(2))
        assert_matches(first, reference(case), case)
        for one, other in zip(first, second, strict=True):
            assert torch.equal(one, other)
    # ... which the emulated threads do change: the plain path is not reproducible.
    plain = [run(emulated, case)[1] for _ in range(4)]
    assert not all(torch.equal(plain[0], other) for other in plain[1:])


def test_merging_saves_most_additions_where_queries_meet(emulated):
    # 48 queries side by side, with the same small offsets, as in an encoder.
    sizes = {
        'shapes': ((4, 48), (2, 24), (1, 12), (1, 6)),
        'channels': 32,
        'points': 4,
        'heads': 1,
        'batch': 1,
    }
    offsets = (torch.rand(1, 1, 1, 4, 4, 2, generator=torch.Generator().manual_seed(3)) - 0.5) * 0.1

    def additions(queries: int) -> float:
        """Per query."""
        case = make_case(sizes | {'queries': queries}, torch.float32, 0)
        centres = torch.stack([(torch.arange(queries) + 0.5) / 48, torch.full((queries,), 0.5)], -1)
        locations = centres[None, :, None, None, None] + offsets
        case = case._replace(inputs=case.inputs._replace(sampling_locations=locations))
        before = emulated.reductions()
        grad_value = run(emulated, case)[1]
        assert torch.allclose(grad_value.double(), reference(case)[1], atol=1e-5)
        return (emulated.reductions() - before) / queries

    # 39 queries lie below the threshold, so each corner is an addition of its own.
    assert additions(48) < 0.35 * additions(39)


def test_locations_on_and_beyond_the_borders(emulated):
    inputs, counts = special_points()
    case = Case(inputs, torch.ones(1, len(counts), 32, dtype=torch.float64))
    out, grad_value, grad_locations, grad_weights = run(emulated, case)
    assert_matches((out, grad_value, grad_locations, grad_weights), reference(case), case)
    assert [bool(row.any()) for row in out[0]] == counts
    assert [bool(row.any()) for row in grad_weights[0]] == counts
    assert torch.isfinite(grad_locations).all()


def test_non_finite_weights_propagate_where_they_are_used(emulated):
    inputs, counts = special_points()
    for weight in (math.nan, math.inf):
        case = Case(
            inputs._replace(attention_weights=torch.full_like(inputs.attention_weights, weight)),
            torch.ones(1, len(counts), 32).double(),
        )
        out = run(emulated, case)[0]
        assert [bool(row.isfinite().all()) for row in out[0]] == [not c for c in counts]


@pytest.mark.parametrize('deterministic', [False, True], ids=['plain', 'deterministic'])
@pytest.mark.parametrize('bad', [(-1, 4), (1 << 40, 1 << 40), (5, 4)])
def test_a_level_that_does_not_fit_the_tokens_gives_nan(emulated, bad, deterministic):
    case = make_case(KNOWN | {'queries': 3}, torch.float32, 0)
    shapes = case.inputs.spatial_shapes.clone()
    shapes[3] = torch.tensor(bad)
    case = case._replace(inputs=case.inputs._replace(spatial_shapes=shapes))
    out, grad_value, *_ = run(emulated, case, deterministic)
    assert out.isnan().all()
    assert grad_value[:, 1:].isfinite().all()  # invalid levels are redirected to token 0
    assert grad_value[:, 0].isnan().all()


@pytest.mark.parametrize(
    'empty', [{'batch': 0}, {'queries': 0}, {'shapes': ((0, 3), (0, 0))}, {'points': 0}, {'heads': 0}]
)
def test_empty_inputs_give_zeros(emulated, empty):
    for reference_dim in (0, 4):
        case = make_case(empty, torch.float32, reference_dim)
        got = run(emulated, case)
        for one, like in zip(
            got, (case.grad_output, *(t for t in case.inputs if t.is_floating_point())), strict=True
        ):
            assert one.shape == like.shape
            assert not one.any()


def test_rows_not_aligned_to_16_bytes(emulated):
    case = make_case(KNOWN | {'queries': 3}, torch.float32, 0)
    value = torch.cat([torch.zeros(1), case.inputs.value.flatten()])[1:].view_as(case.inputs.value)
    assert value.data_ptr() % 16 != 0
    shifted = case._replace(inputs=case.inputs._replace(value=value))
    assert_matches(run(emulated, shifted), reference(case), case)


def test_non_contiguous_views(emulated):
    case = make_case(KNOWN | {'queries': 3}, torch.float32, 0)
    inputs = case.inputs
    value = inputs.value.transpose(1, 2).contiguous().transpose(1, 2)
    weights = inputs.attention_weights[:, :1].expand_as(inputs.attention_weights)
    case = case._replace(inputs=inputs._replace(value=value, attention_weights=weights))
    assert_matches(run(emulated, case), reference(case), case)


BAD_INPUTS = {
    'rank of value': (
        lambda i: i._replace(value=i.value[0]),
        r'value must have the shape \(B, S, M, D\), got \(48, 2, 8\)',
    ),
    'dtype of value': (
        lambda i: i._replace(value=i.value.int()),
        'value must be float32, float64, bfloat16 or float16, got Int',
    ),
    'dtype of shapes': (
        lambda i: i._replace(spatial_shapes=i.spatial_shapes.float()),
        'spatial_shapes and level_start_index must be int64 or int32, got Float',
    ),
    'shape of weights': (
        lambda i: i._replace(attention_weights=i.attention_weights[:, :, :, :2]),
        r'attention_weights must have the shape .*got \(2, 6, 2, 2, 3\)',
    ),
    'dtype of locations': (
        lambda i: i._replace(sampling_locations=i.sampling_locations.half()),
        'sampling_locations is Half, but with a value of Float',
    ),
    'number of levels': (
        lambda i: i._replace(level_start_index=i.level_start_index[:2]),
        'level_start_index must have one entry for each of the 3 levels',
    ),
}


@pytest.mark.parametrize(('change', 'message'), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inconsistent_arguments_raise(emulated, change, message):
    case = make_case({}, torch.float32, 0)
    with pytest.raises(RuntimeError, match=message):
        run(emulated, case._replace(inputs=change(case.inputs)))


def test_kernels_stay_inside_their_tensors(tmp_path):
    """Random problems under AddressSanitizer and UndefinedBehaviorSanitizer."""
    sanitize = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-D__CUDA_ARCH__=900']
    names = [CUDA / 'float.cu', CUDA / 'half.cu', CUDA / 'double.cu']
    names += [EMULATION / 'sort.cpp', EMULATION / 'memory_main.cpp']
    objects = _compile(tmp_path, [(name, sanitize) for name in names])
    program = str(tmp_path / 'memory')
    subprocess.run([CXX, *sanitize, *objects, '-o', program], check=True)
    done = subprocess.run([program, '24'], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, '24 problems\n'), done.stderr[-3000:]


def test_shared_arithmetic_against_python(tmp_path):
    """sampling.h, point by point, against the formulas written out."""
    program = str(tmp_path / 'sampling')
    subprocess.run(
        [
            CXX,
            '-std=c++17',
            '-Wall',
            '-Werror',
            f'-I{CUDA.parent}',
            str(EMULATION / 'sampling_main.cpp'),
            '-o',
            program,
        ],
        check=True,
    )
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(300, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3).tolist()
    points += [
        [0.0, 0.0],
        [1.0, 1.0],
        [-0.125, 0.5],
        [1.125, 0.5],
        [math.nan, 0.5],
        [0.5, math.inf],
        [-1e300, 0.5],
    ]
    height, width, weight, products = 3, 4, 0.7, [0.3, -1.1, 2.0, 0.9]
    lines = '\n'.join(f'{x} {y} {weight} {height} {width} {" ".join(map(str, products))}' for x, y in points)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    for (x, y), line in zip(points, done.stdout.splitlines(), strict=True):
        got = [float(word) for word in line.split()]
        assert got == pytest.approx(
            _by_formula(x * width - 0.5, y * height - 0.5, height, width, weight, products)
        ), (x, y)


def _by_formula(x, y, height, width, weight, products):
    """Cell, mask, corner weights and derivatives as equation 3's bilinear kernel max(0, 1 - |a - b|) gives them."""
    if not (-1 < x < width and -1 < y < height):
        return [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    left, top = math.floor(x), math.floor(y)
    mask, weights, by_weight, by_x, by_y = 0, [], 0.0, 0.0, 0.0
    for c, (row, column) in enumerate([(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]):
        along_x, along_y = 1 - abs(x - column), 1 - abs(y - row)
        on_map = 0 <= row < height and 0 <= column < width
        weights.append(weight * along_x * along_y * on_map)
        if on_map:
            mask |= 1 << c
            by_weight += along_x * along_y * products[c]
            by_x += weight * (1 if column > left else -1) * along_y * products[c]
            by_y += weight * along_x * (1 if row > top else -1) * products[c]
    return [left, top, mask, *weights, by_weight, by_x, by_y]
