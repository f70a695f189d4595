"""Time the operators on a GPU against grid_sample and, given its sources, mmcv's kernels. Prints a Markdown table.

    python ops/gpu_benchmark.py [--mmcv FOLDER]

FOLDER: mmcv's unpacked source distribution from PyPI (2.2.0); its kernels are compiled on the spot, with PyTorch's own
headers. They take fp32 and fp16, not bf16, so every ratio names the dtype of mmcv's kernel. Takes a few minutes.

Offsets are fresh, as a new model has them (point i lies i + 1 pixels from the reference, one direction per head), or
trained, drawn from a normal distribution of 3 or 6 pixels. Cold times follow a write that flushes the L2 cache, warm
ones a call of the same function. Both are medians.
"""

import argparse
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ddetr_ops import _library, ms_deform_attn, ms_deform_attn_fused

HEADS, POINTS, BATCH = 8, 4, 2
OPS = torch.ops.ddetr_ops
MERGE = 'DDETR_OPS_MERGE_MIN_QUERIES'
Functions = dict[str, Callable[[], object]]

MMCV_BINDING = """
#include <torch/extension.h>
using T = at::Tensor;
T ms_deform_attn_cuda_forward(const T&, const T&, const T&, const T&, const T&, const int);
void ms_deform_attn_cuda_backward(const T&, const T&, const T&, const T&, const T&, const T&, T&, T&, T&, const int);
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("forward", &ms_deform_attn_cuda_forward);
  m.def("backward", &ms_deform_attn_cuda_backward);
}
"""


class Geometry(NamedTuple):
    name: str
    shapes: tuple[tuple[int, int], ...]  # (h, w) of each level
    queries: int | None  # None: one per token, as in an encoder
    channels: int  # per head
    offsets: str  # fresh, or the standard deviation in pixels


class Precision(NamedTuple):
    name: str
    value: torch.dtype
    points: torch.dtype  # of locations and weights


class Inputs(NamedTuple):
    value: Tensor  # (B, S, M, D)
    shapes: Tensor  # (L, 2)
    starts: Tensor  # (L,)
    locations: Tensor  # (B, Q, M, L, P, 2)
    weights: Tensor  # (B, Q, M, L, P)
    references: Tensor  # (B, Q, L, 2)
    offsets: Tensor  # (B, Q, M, L, P, 2)
    logits: Tensor  # (B, Q, M, L * P)
    grad: Tensor  # (B, Q, M * D)


# Levels of an 800 x 1333 image (strides 8 to 64, with 5 levels from 4 on) and, for three levels, of a 640 x 640 one.
FOUR = ((100, 167), (50, 84), (25, 42), (13, 21))
FIVE = ((200, 334), *FOUR)
THREE = ((80, 80), (40, 40), (20, 20))
GEOMETRIES = (
    Geometry('encoder', FOUR, None, 32, 'fresh'),
    Geometry('encoder', FOUR, None, 32, '3'),
    Geometry('encoder', FOUR, None, 32, '6'),
    Geometry('encoder, D=64', FOUR, None, 64, '3'),
    Geometry('encoder, L=3', THREE, None, 32, '3'),
    Geometry('encoder, L=5', FIVE, None, 32, '3'),
    Geometry('decoder', FOUR, 300, 32, '3'),
    Geometry('decoder, L=3', THREE, 300, 32, '3'),
)
PRECISIONS = (
    Precision('fp32', torch.float32, torch.float32),
    Precision('fp16', torch.float16, torch.float16),
    Precision('bf16, fp32 points', torch.bfloat16, torch.float32),
)


def _centres(shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Normalised (x, y) of every pixel's centre, (S, 2)."""
    grids = []
    for h, w in shapes:
        y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing='ij')
        grids.append(torch.stack([x, y], -1).flatten(0, 1))
    return torch.cat(grids)


def _offsets(geometry: Geometry, queries: int, batch: int, generator: torch.Generator) -> Tensor:
    """In pixels, (B, Q, M, L, P, 2)."""
    size = (batch, queries, HEADS, len(geometry.shapes), POINTS, 2)
    if geometry.offsets != 'fresh':
        return torch.randn(size, generator=generator) * float(geometry.offsets)
    angles = torch.arange(HEADS) * (2 * torch.pi / HEADS)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)  # as in Deformable DETR, whole pixels
    return (directions[:, None, None] * torch.arange(1, POINTS + 1.0)[:, None]).expand(size)


def make_inputs(geometry: Geometry, precision: Precision, device: str = 'cuda', batch: int = BATCH) -> Inputs:
    """Seeded inputs; the classic ones (locations, weights) are those that the fused ones stand for."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.tensor(geometry.shapes)
    sizes, levels = shapes.prod(-1), len(geometry.shapes)
    if geometry.queries is None:
        centres = _centres(geometry.shapes).expand(batch, -1, 2)
    else:
        centres = torch.rand(batch, geometry.queries, 2, generator=generator)
    queries = centres.shape[1]
    references = centres[:, :, None].expand(-1, -1, levels, -1)
    offsets = _offsets(geometry, queries, batch, generator)
    logits = torch.randn(batch, queries, HEADS, levels * POINTS, generator=generator)
    value = torch.randn(batch, int(sizes.sum()), HEADS, geometry.channels, generator=generator)
    grad = torch.randn(batch, queries, HEADS * geometry.channels, generator=generator)
    inputs = Inputs(
        value=value.to(precision.value),
        shapes=shapes,
        starts=sizes.cumsum(0) - sizes,
        locations=(references[:, :, None, :, None] + offsets / shapes.flip(-1)[:, None]).to(precision.points),
        weights=logits.softmax(-1).unflatten(-1, (levels, POINTS)).to(precision.points),
        references=references.float(),
        offsets=offsets.to(precision.points),
        logits=logits.to(precision.points),
        grad=grad.to(precision.value),
    )
    return Inputs(*(t.contiguous().to(device) for t in inputs))


def grid_sample_form(value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The op as one grid_sample a level over all heads, the samples stacked and summed: (B, Q, M * D)."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        level_map = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shapes[level])
        samples.append(F.grid_sample(level_map, grids[:, :, level], align_corners=False))  # (B*M, D, Q, P)
    flat_weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)  # (B*M, 1, Q, L*P)
    out = (torch.stack(samples, -2).flatten(-2) * flat_weights).sum(-1)  # (B*M, D, Q)
    return out.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def compile_mmcv(folder: Path) -> Any:
    """mmcv's extension functions, from its own .cu file and PyTorch's headers.

    Raises:
        FileNotFoundError: the folder is not mmcv's source distribution.
    """
    from torch.utils.cpp_extension import load

    csrc = folder / 'mmcv' / 'ops' / 'csrc'
    kernel = csrc / 'pytorch' / 'cuda' / 'ms_deform_attn_cuda.cu'
    if not kernel.exists():
        raise FileNotFoundError(f'{kernel} is missing: give the folder of the unpacked mmcv-2.2.0.tar.gz')
    work = Path(tempfile.mkdtemp())
    (work / 'binding.cpp').write_text(MMCV_BINDING)
    (work / 'THC').mkdir()  # PyTorch has moved this header
    (work / 'THC' / 'THCAtomics.cuh').write_text('#include <ATen/cuda/Atomic.cuh>\n')
    includes = [str(work), str(csrc / 'common'), str(csrc / 'common' / 'cuda')]
    return load('mmcv_ms_deform_attn', [str(work / 'binding.cpp'), str(kernel)], extra_include_paths=includes)


class MmcvFunction(torch.autograd.Function):
    """mmcv's kernels with autograd, as its own Function calls them."""

    @staticmethod
    def forward(ctx: Any, mmcv: Any, *inputs: Tensor) -> Tensor:
        ctx.mmcv = mmcv
        ctx.save_for_backward(*inputs)
        return mmcv.forward(*inputs, 64)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple:
        inputs = ctx.saved_tensors
        value, locations, weights = (torch.zeros_like(inputs[i]) for i in (0, 3, 4))
        ctx.mmcv.backward(*inputs, grads[0].contiguous(), value, locations, weights, 64)
        return None, value, None, None, locations, weights


def _merging(min_queries: int, function: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        os.environ[MERGE] = str(min_queries)
        try:
            return function()
        finally:
            del os.environ[MERGE]

    return run


def _training_call(
    function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> Callable[[], object]:
    """Forward and backward through autograd, for all inputs that may have a gradient."""
    arguments = [t.detach().clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    leaves = [t for t in arguments if t.requires_grad]

    def run() -> object:
        return torch.autograd.grad(function(*arguments), leaves, grad)

    return run


def candidates(i: Inputs, mmcv: Any) -> dict[str, Functions]:
    """Functions by pass and by name. mmcv and grid_sample only where their dtypes are supported."""
    classic = (i.value, i.shapes, i.starts, i.locations, i.weights)
    fused = (i.value, i.shapes, i.starts, i.references, i.offsets, i.logits)
    backward = functools.partial(OPS.ms_deform_attn_backward, *classic, i.grad)
    passes: dict[str, Functions] = {
        'forward': {
            'ddetr_ops': lambda: OPS.ms_deform_attn_forward(*classic),
            'ddetr_ops fused': lambda: OPS.ms_deform_attn_fused_forward(*fused),
        },
        'backward': {
            'ddetr_ops direct': _merging(1 << 40, lambda: backward(False)),
            'ddetr_ops merged': _merging(0, lambda: backward(False)),
            'ddetr_ops deterministic': lambda: backward(True),
            'ddetr_ops fused': lambda: OPS.ms_deform_attn_fused_backward(*fused, i.grad, False),
        },
        'public call, both': {
            'ddetr_ops': _training_call(ms_deform_attn, classic, i.grad),
            'ddetr_ops fused': _training_call(ms_deform_attn_fused, fused, i.grad),
        },
    }
    if i.locations.dtype != i.value.dtype:
        return passes
    shapes = i.shapes.tolist()

    def sample(value: Tensor, _shapes: Tensor, _starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return grid_sample_form(value, shapes, locations, weights)

    passes['forward']['grid_sample'] = lambda: sample(*classic)
    passes['public call, both']['grid_sample'] = _training_call(sample, classic, i.grad)
    if mmcv is not None:
        function = functools.partial(MmcvFunction.apply, mmcv)
        passes['forward']['mmcv'] = lambda: mmcv.forward(*classic, 64)
        passes['backward']['mmcv'] = lambda: mmcv.backward(
            *classic, i.grad, *(torch.zeros_like(t) for t in (i.value, i.locations, i.weights)), 64
        )
        passes['public call, both']['mmcv'] = _training_call(function, classic, i.grad)
    return passes


class Times(NamedTuple):
    cold: float  # milliseconds
    warm: float


class Timer:
    """Median milliseconds of functions that take turns."""

    def __init__(self) -> None:
        self._flush = torch.empty(256 << 20, dtype=torch.uint8, device='cuda')

    def _once(self, function: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def medians(self, functions: Functions, rounds: int = 15) -> dict[str, Times]:
        cold: dict[str, list[float]] = {name: [] for name in functions}
        warm: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(rounds + 3):
            for name, function in functions.items():
                self._flush.zero_()
                times = Times(self._once(function), self._once(function))
                if turn >= 3:  # the first ones warm up
                    cold[name].append(times.cold)
                    warm[name].append(times.warm)
        return {n: Times(statistics.median(cold[n]), statistics.median(warm[n])) for n in functions}


def copy_bandwidth() -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    return (
        2 * source.numel() / (Timer().medians({'copy': lambda: target.copy_(source)}, 10)['copy'].cold / 1e3)
    )


def traffic(i: Inputs) -> dict[str, int]:
    """Bytes that have to move at least once, by pass."""
    points = sum(t.numel() * t.element_size() for t in (i.value, i.locations, i.weights))
    grad = i.grad.numel() * i.grad.element_size()
    forward, backward = points + grad, 2 * points + grad
    return {'forward': forward, 'backward': backward, 'public call, both': forward + backward}


Measured = dict[tuple[str, str, str], Times]  # by pass, precision and candidate
COLUMNS = 'geometry | offsets | pass | precision | candidate | cold ms | warm ms | floor ms'
RATIOS = (('grid_sample', 'fp32'), ('mmcv', 'fp32'), ('mmcv', 'fp16'))


def header() -> list[str]:
    ratios = [f'x {rival} {precision}' for rival, precision in RATIOS]
    return [f'| {COLUMNS} | {" | ".join(ratios)} |', '|---|---|---|---|---|' + '---:|' * (3 + len(RATIOS))]


def rows(geometry: Geometry, measured: Measured, floors: dict[tuple[str, str], float]) -> Iterator[str]:
    """Table rows; ratios are those of the cold times of the same pass, floors in ms by pass and precision."""
    for (pass_name, precision, candidate), times in measured.items():
        cells = [geometry.name, geometry.offsets, pass_name, precision, candidate]
        cells += [f'{times.cold:.3f}', f'{times.warm:.3f}', f'{floors[pass_name, precision]:.3f}']
        for rival, rival_precision in RATIOS:
            other = measured.get((pass_name, rival_precision, rival))
            cells.append('' if other is None else f'{other.cold / times.cold:.2f}')
        yield f'| {" | ".join(cells)} |'


def measure(geometry: Geometry, mmcv: Any, bandwidth: float) -> Iterator[str]:
    measured: Measured = {}
    floors = {}
    for precision in PRECISIONS:
        inputs = make_inputs(geometry, precision)
        for pass_name, functions in candidates(inputs, mmcv).items():
            floors[pass_name, precision.name] = traffic(inputs)[pass_name] / bandwidth * 1e3
            for name, times in Timer().medians(functions).items():
                measured[pass_name, precision.name, name] = times
    yield from rows(geometry, measured, floors)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--mmcv', type=Path, help="mmcv's unpacked source distribution")
    args = parser.parse_args()
    if _library.CUDA_PROBLEM is not None:
        sys.exit(f'No CUDA kernels: {_library.CUDA_PROBLEM}')
    mmcv = compile_mmcv(args.mmcv) if args.mmcv else None
    bandwidth = copy_bandwidth()
    print(
        f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; a large copy moves {bandwidth / 1e9:.0f} GB/s.\n'
        'Floor: the time to move every tensor once at that speed. Ratios: cold time of the other / cold time.\n'
    )
    print('\n'.join(header()), flush=True)
    for geometry in GEOMETRIES:
        try:
            print('\n'.join(measure(geometry, mmcv, bandwidth)), flush=True)
        except torch.cuda.OutOfMemoryError as error:
            print(f'{geometry.name}: left out, {error}', file=sys.stderr, flush=True)
        torch.cuda.empty_cache()


if __name__ == '__main__':
    main()
