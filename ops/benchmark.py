"""Time the op on the CPU against the `grid_sample` formulation that mmcv and Hugging Face use.

    python ops/benchmark.py [--repeats 7] [--threads 2] [--parts op calls fused memory huggingface]

The candidates take turns in one process and the tables give medians, so that other load on the machine affects all of
them alike: trust the ratios. Shapes: the levels of an 800 x 1066 image (strides 8 to 64), 8 heads of 32 channels,
4 points per level; encoder: a query for every token; decoder: 300 queries. Offsets: 'fresh' as a new layer gives them
(1 to 4 pixels in 8 directions), 'sigma 2 px' drawn from a normal distribution of 2 pixels. GPU: see gpu_check.sh.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from ddetr_ops import ms_deform_attn, ms_deform_attn_fused
from ddetr_ops.reference import sampling_locations_of
from torch import Tensor

SHAPES = ((100, 134), (50, 67), (25, 34), (13, 17))
HEADS, CHANNELS, POINTS = 8, 32, 4
DTYPES = {'grid': torch.float32, 'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def by_grid_sample(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """One grid_sample per level, all samples stacked, then weighted and summed."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    sampled = []
    for level, tokens in enumerate(value.split([h * w for h, w in SHAPES], dim=1)):
        image = tokens.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *SHAPES[level])
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # (B*M, Q, P, 2)
        sampled.append(F.grid_sample(image, grid, padding_mode='zeros', align_corners=False))
    stacked = torch.stack(sampled, -2).flatten(-2)  # (B*M, D, Q, L*P)
    factors = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    return (stacked * factors).sum(-1).view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def medians(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds, after one warm-up round, the candidates in turn."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def fresh_offsets() -> Tensor:
    """(M, 1, P, 2): offsets of a new layer, 1 to P pixels in one direction per head (Deformable DETR, appendix A.4)."""
    angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    return directions[:, None, None] * torch.arange(1.0, POINTS + 1)[:, None]


def make_inputs(batch: int, queries: int | None, fresh: bool = False) -> dict[str, Tensor]:
    """Everything that both forms take; `queries` None: one for each token."""
    torch.manual_seed(0)
    shapes = torch.tensor(SHAPES)
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    if queries is None:
        centers = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w) for h, w in SHAPES
        ]
        references = torch.cat(centers).flip(-1)  # (Q, 2)
    else:
        references = torch.rand(queries, 2)
    references = references[None, :, None].repeat(batch, 1, len(SHAPES), 1)  # (B, Q, L, 2)
    size = (batch, references.shape[1], HEADS, len(SHAPES))
    offsets, logits = torch.randn(*size, POINTS, 2) * 2, torch.randn(*size[:3], len(SHAPES) * POINTS)
    if fresh:
        offsets, logits = fresh_offsets().expand_as(offsets).contiguous(), torch.zeros_like(logits)
    return {
        'value': torch.randn(batch, int(shapes.prod(1).sum()), HEADS, CHANNELS),
        'shapes': shapes,
        'starts': starts,
        'references': references,
        'offsets': offsets,
        'logits': logits,
        'locations': sampling_locations_of(references, offsets, shapes),
        'weights': logits.softmax(-1).view(*size, POINTS),
    }


def backward_of(output: Tensor, leaves: list[Tensor]) -> Callable[[], object]:
    grad_output = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def time_case(batch: int, queries: int | None, fresh: bool, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of forward and backward: grid_sample in fp32, the op in three dtypes of `value`."""
    data = make_inputs(batch, queries, fresh)
    forward: dict[str, Callable[[], object]] = {}
    backward: dict[str, Callable[[], object]] = {}
    for name, dtype in DTYPES.items():
        tensors = [data['value'].to(dtype), data['locations'], data['weights']]
        leaves = [t.clone().requires_grad_() for t in tensors]

        def run(value: Tensor, locations: Tensor, weights: Tensor, grid: bool = name == 'grid') -> Tensor:
            if grid:
                return by_grid_sample(value, locations, weights)
            return ms_deform_attn(value, data['shapes'], data['starts'], locations, weights)

        forward[name] = lambda run=run, tensors=tensors: run(*tensors)
        backward[name] = backward_of(run(*leaves), leaves)
    return {
        label: {name: 1e3 * seconds for name, seconds in medians(candidates, repeats).items()}
        for label, candidates in (('forward', forward), ('backward', backward))
    }


def time_op(repeats: int) -> None:
    print(
        '| shape | offsets | pass | grid_sample ms | op fp32 ms | gain | op bf16 ms | bf16 over fp32 | op fp16 ms '
        '| B=4 : B=1 |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|'
    )
    for shape, queries in (('encoder', None), ('decoder', 300)):
        for fresh in (True, False):
            single: dict[str, float] = {}
            for batch in (1, 4):
                for label, ms in time_case(batch, queries, fresh, repeats).items():
                    single.setdefault(label, ms['fp32'])
                    ratio = f'{ms["fp32"] / single[label]:.2f}' if batch > 1 else ''
                    print(f'| {shape}, B={batch} | {"fresh" if fresh else "sigma 2 px"} | {label} | {ms["grid"]:.1f} '
                          f'| {ms["fp32"]:.2f} | {ms["grid"] / ms["fp32"]:.1f}x | {ms["bf16"]:.2f} '
                          f'| {ms["fp32"] / ms["bf16"]:.2f}x | {ms["fp16"]:.2f} | {ratio} |', flush=True)  # fmt: skip


def time_calls(repeats: int) -> None:
    """Forward and backward through autograd against the two raw operators: the rest is Python and autograd."""
    ops = torch.ops.ddetr_ops
    print(
        '| forward and backward | through autograd ms | raw operators ms | share of the rest |\n|---|---:|---:|---:|'
    )
    for queries in (1, 300):
        data = make_inputs(1, queries)
        leaves = [data[name].clone().requires_grad_() for name in ('value', 'locations', 'weights')]
        inputs = [leaves[0].detach(), data['shapes'], data['starts'], *(t.detach() for t in leaves[1:])]
        grad_output = torch.ones_like(ops.ms_deform_attn_forward(*inputs))

        def through_autograd(data: dict = data, leaves: list = leaves, grad: Tensor = grad_output) -> None:
            out = ms_deform_attn(leaves[0], data['shapes'], data['starts'], *leaves[1:])
            torch.autograd.grad(out, leaves, grad)

        def raw(inputs: list = inputs, grad: Tensor = grad_output) -> None:
            ops.ms_deform_attn_forward(*inputs)
            ops.ms_deform_attn_backward(*inputs, grad)

        ms = medians({'autograd': through_autograd, 'raw': raw}, 20 * repeats)
        print(f'| {queries} queries, B=1 | {1e3 * ms["autograd"]:.3f} | {1e3 * ms["raw"]:.3f} '
              f'| {1 - ms["raw"] / ms["autograd"]:.0%} |', flush=True)  # fmt: skip


def time_fused(repeats: int) -> None:
    """A whole attention module with its four projections, classic and fused."""
    data = make_inputs(1, None)
    channels, queries = HEADS * CHANNELS, data['references'].shape[1]
    layers = {name: torch.nn.Linear(channels, width) for name, width in (
        ('value', channels), ('offsets', HEADS * len(SHAPES) * POINTS * 2),
        ('logits', HEADS * len(SHAPES) * POINTS), ('output', channels),
    )}  # fmt: skip
    tokens = torch.randn(1, queries, channels)

    def module(fused: bool) -> Tensor:
        value = layers['value'](tokens).unflatten(-1, (HEADS, CHANNELS))
        offsets = layers['offsets'](tokens).view(1, queries, HEADS, len(SHAPES), POINTS, 2)
        logits = layers['logits'](tokens).view(1, queries, HEADS, -1)
        common = value, data['shapes'], data['starts']
        if fused:
            return layers['output'](ms_deform_attn_fused(*common, data['references'], offsets, logits))
        weights = logits.softmax(-1).view(offsets.shape[:-1])
        locations = sampling_locations_of(data['references'], offsets, data['shapes'])
        return layers['output'](ms_deform_attn(*common, locations, weights))

    def step(fused: bool) -> object:
        return torch.autograd.grad(module(fused).sum(), [layer.weight for layer in layers.values()])

    print('| attention module | classic ms | fused ms | gain |\n|---|---|---|---|')
    with torch.no_grad():
        ms = medians({'classic': lambda: module(False), 'fused': lambda: module(True)}, repeats)
    print(
        f'| forward | {1e3 * ms["classic"]:.1f} | {1e3 * ms["fused"]:.1f} | {ms["classic"] / ms["fused"]:.2f}x |'
    )
    ms = medians({'classic': lambda: step(False), 'fused': lambda: step(True)}, repeats)
    print(f'| forward and backward | {1e3 * ms["classic"]:.1f} | {1e3 * ms["fused"]:.1f} '
          f'| {ms["classic"] / ms["fused"]:.2f}x |', flush=True)  # fmt: skip


def _status_mib(key: str) -> float:
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1024


def peak_mib(run: Callable[[], object]) -> float:
    """How far resident memory rises above where it is now while this runs; Linux only."""
    run()
    ctypes.CDLL(None).malloc_trim(0)  # give back what only waits to be used again
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak so far
    before = _status_mib('VmRSS')
    result = run()
    rise = _status_mib('VmHWM') - before
    del result
    return rise


def measure_memory() -> None:
    data = make_inputs(1, None)
    leaves = [data[name].requires_grad_() for name in ('value', 'locations', 'weights')]

    def op() -> Tensor:
        return ms_deform_attn(leaves[0], data['shapes'], data['starts'], *leaves[1:])

    print(
        '| encoder, B=1, fp32 | results MiB | rise of memory, op | rise of memory, grid_sample |\n|---|---|---|---|'
    )
    results = leaves[0].numel() * 4 / 2**20
    with torch.no_grad():
        print(
            f'| forward | {results:.0f} | {peak_mib(op):.0f} | {peak_mib(lambda: by_grid_sample(*leaves)):.0f} |'
        )
    results = sum(leaf.numel() for leaf in leaves) * 4 / 2**20
    rises = [peak_mib(backward_of(run(), leaves)) for run in (op, lambda: by_grid_sample(*leaves))]
    print(f'| backward | {results:.0f} | {rises[0]:.0f} | {rises[1]:.0f} |', flush=True)


def time_huggingface(repeats: int, size: tuple[int, int]) -> None:
    """Inference and training step of Deformable DETR R50 on one image, before and after one call."""
    import transformers
    from ddetr_ops.compat import huggingface

    resnet = transformers.ResNetConfig(out_features=['stage2', 'stage3', 'stage4'])
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=resnet,
        num_labels=91,
        dropout=0.0,
    )
    torch.manual_seed(0)
    plain = transformers.DeformableDetrForObjectDetection(config).eval()
    fast = transformers.DeformableDetrForObjectDetection(config).eval()
    fast.load_state_dict(plain.state_dict())
    print(f"{huggingface.accelerate(fast)} attention layers of Hugging Face's Deformable DETR run on the op")
    image = torch.randn(1, 3, *size)
    labels = [{'class_labels': torch.tensor([1, 7]), 'boxes': torch.rand(2, 4) * 0.3 + 0.3}]

    def infer(model: torch.nn.Module) -> Tensor:
        with torch.no_grad():
            out = model(pixel_values=image)
        return torch.cat([out.logits, out.pred_boxes], -1)

    def train(model: torch.nn.Module) -> None:
        model.zero_grad()
        model(pixel_values=image, labels=labels).loss.backward()

    print(f'largest difference of logits and boxes: {(infer(plain) - infer(fast)).abs().max():.1e}')
    print(f'| Hugging Face, {size[0]} x {size[1]} | before s | after s | gain |\n|---|---|---|---|')
    for label, run in (('inference', infer), ('training step', train)):
        s = medians(
            {'plain': lambda run=run: run(plain), 'fast': lambda run=run: run(fast)}, max(1, repeats // 2)
        )
        print(f'| {label} | {s["plain"]:.2f} | {s["fast"]:.2f} | {s["plain"] / s["fast"]:.2f}x |', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--repeats', type=int, default=7, help='timed runs of each candidate (default: 7)')
    parser.add_argument('--threads', type=int, default=2, help='threads (default: 2)')
    names = ('op', 'calls', 'fused', 'memory', 'huggingface')
    parser.add_argument('--parts', nargs='+', default=names[:4], choices=names, help='what to measure')
    parser.add_argument(
        '--image', type=int, nargs=2, default=(800, 1066), metavar=('H', 'W'), help='for the part huggingface'
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f'PyTorch {torch.__version__}, {arguments.threads} threads, medians of {arguments.repeats}\n')
    for part in arguments.parts:
        if part == 'op':
            time_op(arguments.repeats)
        elif part == 'calls':
            time_calls(arguments.repeats)
        elif part == 'fused':
            time_fused(arguments.repeats)
        elif part == 'memory':
            measure_memory()
        else:
            time_huggingface(arguments.repeats, tuple(arguments.image))
        print()


if __name__ == '__main__':
    main()
