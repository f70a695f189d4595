"""Time the operators on a GPU against grid_sample and, given its sources, mmcv's kernel. Prints a Markdown table.

    python ops/gpu_benchmark.py [--mmcv FOLDER]

FOLDER: mmcv's unpacked source distribution from PyPI (2.2.0); its kernel is compiled on the spot, with PyTorch's
own headers. Shapes are Deformable DETR's for two pictures of 800 x 1333: encoder (22,223 queries) and decoder (300).
Times are medians of runs that alternate between the candidates; traffic is what has to move at least once.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from ddetr_ops import _library

SHAPES = ((100, 167), (50, 84), (25, 42), (13, 21))
BATCH, HEADS, CHANNELS, POINTS = 2, 8, 32, 4
OPS = torch.ops.ddetr_ops

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


def make_inputs(form: str, dtype: torch.dtype, points_dtype: torch.dtype) -> Inputs:
    """Offsets as a fresh model has them: point i lies about i + 1 pixels from the reference, a direction a head."""
    torch.manual_seed(0)
    shapes = torch.tensor(SHAPES, device='cuda')
    sizes = shapes.prod(-1)
    tokens, levels = int(sizes.sum()), len(SHAPES)
    if form == 'encoder':
        centres = [
            torch.stack(
                [(torch.arange(w) + 0.5).repeat(h) / w, (torch.arange(h) + 0.5).repeat_interleave(w) / h], -1
            )
            for h, w in SHAPES
        ]
        references = torch.cat(centres).cuda()[None, :, None].expand(BATCH, -1, levels, -1)  # (B, Q, L, 2)
    else:
        references = torch.rand(BATCH, 300, 1, 2, device='cuda').expand(-1, -1, levels, -1)
    queries = references.shape[1]
    angles = torch.arange(HEADS, device='cuda') * (2 * torch.pi / HEADS)
    rays = (
        torch.stack([angles.cos(), angles.sin()], -1)[:, None, None]
        * (torch.arange(POINTS, device='cuda') + 1)[:, None]
    )
    offsets = rays + torch.randn(BATCH, queries, HEADS, levels, POINTS, 2, device='cuda') * 0.5
    locations = references[:, :, None, :, None] + offsets / shapes.flip(-1)[:, None]
    logits = torch.randn(BATCH, queries, HEADS, levels * POINTS, device='cuda')
    weights = logits.softmax(-1).unflatten(-1, (levels, POINTS))
    value = torch.randn(BATCH, tokens, HEADS, CHANNELS, device='cuda')
    grad = torch.randn(BATCH, queries, HEADS * CHANNELS, device='cuda')
    fine = [t.to(points_dtype).contiguous() for t in (locations, weights, offsets, logits)]
    return Inputs(
        value.to(dtype),
        shapes,
        sizes.cumsum(0) - sizes,
        fine[0],
        fine[1],
        references.float().contiguous(),
        *fine[2:],
        grad.to(dtype),
    )


def grid_sample_form(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The op as one grid_sample a level over all heads, the samples stacked and summed: (B, Q, M * D)."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, L, P, 2)
    samples = []
    for level, part in enumerate(value.split([h * w for h, w in SHAPES], dim=1)):
        level_map = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, *SHAPES[level])
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
        raise FileNotFoundError(f'{kernel} is not there: give the folder of the unpacked mmcv-2.2.0.tar.gz')
    work = Path(tempfile.mkdtemp())
    (work / 'binding.cpp').write_text(MMCV_BINDING)
    (work / 'THC').mkdir()  # PyTorch has moved this header
    (work / 'THC' / 'THCAtomics.cuh').write_text('#include <ATen/cuda/Atomic.cuh>\n')
    includes = [str(work), str(csrc / 'common'), str(csrc / 'common' / 'cuda')]
    return load('mmcv_ms_deform_attn', [str(work / 'binding.cpp'), str(kernel)], extra_include_paths=includes)


class Timer:
    """Median milliseconds of functions that take turns, the caches flushed by a large write before each."""

    def __init__(self) -> None:
        self._flush = torch.empty(256 << 20, dtype=torch.uint8, device='cuda')

    def medians(self, candidates: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for turn in range(rounds + 5):
            for name, function in candidates.items():
                self._flush.zero_()
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                function()
                end.record()
                end.synchronize()
                if turn >= 5:  # the first ones warm up
                    times[name].append(begin.elapsed_time(end))
        return {name: statistics.median(each) for name, each in times.items()}


def copy_bandwidth() -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device='cuda')
    target = torch.empty_like(source)
    return 2 * source.numel() / (Timer().medians({'copy': lambda: target.copy_(source)}, 10)['copy'] / 1e3)


def byte_count(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def candidates(i: Inputs, mmcv: Any) -> dict[str, dict[str, Callable[[], object]]]:
    """Functions by pass and by name."""
    classic = (i.value, i.shapes, i.starts, i.locations, i.weights)
    fused = (i.value, i.shapes, i.starts, i.references, i.offsets, i.logits)

    def softmax_and_classic() -> Tensor:
        weights = i.logits.softmax(-1).view(i.weights.shape)
        locations = i.references[:, :, None, :, None] + i.offsets / i.shapes.flip(-1)[:, None]
        return OPS.ms_deform_attn_forward(i.value, i.shapes, i.starts, locations.to(i.offsets.dtype), weights)

    forward: dict[str, Callable[[], object]] = {
        'ddetr_ops': lambda: OPS.ms_deform_attn_forward(*classic),
        'ddetr_ops fused': lambda: OPS.ms_deform_attn_fused_forward(*fused),
        'softmax, locations, ddetr_ops': softmax_and_classic,
    }
    backward: dict[str, Callable[[], object]] = {
        'ddetr_ops': lambda: OPS.ms_deform_attn_backward(*classic, i.grad, False),
        'ddetr_ops fused': lambda: OPS.ms_deform_attn_fused_backward(*fused, i.grad, False),
        'ddetr_ops deterministic': lambda: OPS.ms_deform_attn_backward(*classic, i.grad, True),
    }
    if i.locations.dtype == i.value.dtype:
        leaves = [t.detach().clone().requires_grad_() for t in (i.value, i.locations, i.weights)]
        out = grid_sample_form(*leaves)
        forward['grid_sample'] = lambda: grid_sample_form(i.value, i.locations, i.weights)
        backward['grid_sample'] = lambda: torch.autograd.grad(out, leaves, i.grad, retain_graph=True)
        if mmcv is not None and i.value.dtype != torch.bfloat16:  # which mmcv's kernel does not take
            forward['mmcv'] = lambda: mmcv.forward(*classic, 64)
            backward['mmcv'] = lambda: mmcv.backward(
                *classic, i.grad, *(torch.zeros_like(t) for t in leaves), 64
            )
    return {'forward': forward, 'backward': backward}


def print_rows(form: str, dtype: torch.dtype, points_dtype: torch.dtype, mmcv: Any, bandwidth: float) -> None:
    i = make_inputs(form, dtype, points_dtype)
    once = byte_count(i.value, i.locations, i.weights)
    traffic = {'forward': once + byte_count(i.grad), 'backward': 2 * once + byte_count(i.grad)}
    label = str(dtype).removeprefix('torch.') + ('' if dtype == points_dtype else ', float32 points')
    for direction, functions in candidates(i, mmcv).items():
        times = Timer().medians(functions)
        floor = traffic[direction] / bandwidth * 1e3
        for name, ms in times.items():
            cells = [
                form,
                direction,
                label,
                name,
                f'{ms:.3f}',
                f'{traffic[direction] / ms / 1e6:.0f}',
                f'{floor / ms:.0%}',
            ]
            for rival in ('grid_sample', 'mmcv'):
                cells.append(f'{times[rival] / ms:.2f}' if rival in times else '')
            print('| ' + ' | '.join(cells) + ' |', flush=True)


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
        f'{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; a large copy moves {bandwidth / 1e9:.0f} GB/s.'
    )
    print(
        "Traffic: every tensor once; floor: the time that takes at the copy's speed, as a share of the time taken.\n"
    )
    print('| shape | pass | dtype | candidate | ms | GB/s | floor | x grid_sample | x mmcv |')
    print('|---|---|---|---|---:|---:|---:|---:|---:|')
    for form in ('encoder', 'decoder'):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for points_dtype in sorted({dtype, torch.float32}, key=str, reverse=True):
                print_rows(form, dtype, points_dtype, mmcv, bandwidth)


if __name__ == '__main__':
    main()
