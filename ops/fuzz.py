"""Random calls of the op's CPU kernels, good and bad: run by sanitize.sh, which watches every memory access.

python ops/fuzz.py [CALLS] [SEED]
"""

import random
import sys
import time

import torch
from ddetr_ops import _library

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def random_inputs(rng: random.Random, fused: bool) -> tuple[list[torch.Tensor], list[int]]:
    """The tensors, and num_points: empty where all levels have the same number."""
    dtype = rng.choice(DTYPES)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    points_dtype = rng.choice((dtype, wide))
    levels = rng.randint(0, 4)
    shapes = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(levels)]
    batch, queries, heads = rng.randint(0, 3), rng.randint(0, 12), rng.randint(0, 3)
    channels = rng.choice((0, 1, 2, 7, 8, 16, 24, 31, 32, 33, 64, 70, 128))
    num_points = [rng.choice((0, 1, 2, 4, 5, 70)) for _ in range(levels)]
    uniform = not levels or rng.random() < 0.5
    layout = (levels, rng.choice((0, 1, 2, 4, 5, 70))) if uniform else (sum(num_points),)
    sizes = torch.tensor([h * w for h, w in shapes], dtype=torch.int64)
    index = rng.choice((torch.int64, torch.int32))
    spread = rng.choice((1.0, 1.5, 30.0, 1e20))
    locations = torch.rand(batch, queries, heads, *layout, 2) * spread - (spread - 1) / 2
    for bad in (float('nan'), float('inf'), -float('inf')):
        locations[torch.rand(locations.shape) < 0.02] = bad
    inputs = [
        torch.randn(batch, int(sizes.sum()), heads, channels).to(dtype),
        torch.tensor(shapes, dtype=index).reshape(levels, 2),
        (sizes.cumsum(0) - sizes).to(index),
    ]
    if fused:
        references = torch.rand(batch, queries, levels, rng.choice((2, 4))).to(wide)
        logits = torch.randn(locations.shape[:-1]).flatten(3) * rng.choice((1, 200))
        inputs += [references, locations.to(points_dtype), logits.to(points_dtype)]
    else:
        inputs += [locations.to(points_dtype), torch.rand(locations.shape[:-1]).to(points_dtype)]
    return inputs, [] if uniform else num_points


def spoil(rng: random.Random, inputs: list[torch.Tensor]) -> None:
    """Make one tensor lie about something."""
    i = rng.randrange(len(inputs))
    tensor = inputs[i]
    kind = rng.randrange(5)
    if kind == 0 and tensor.dim() and tensor.shape[-1]:
        inputs[i] = tensor[..., :-1]
    elif kind == 1:
        inputs[i] = tensor.unsqueeze(0)
    elif kind == 2:
        inputs[i] = tensor.to(rng.choice((*DTYPES, torch.int64, torch.int32, torch.bool)))
    elif kind == 3 and not tensor.is_floating_point():
        inputs[i] = tensor + rng.choice((-3, 1, 2**30))
    else:
        inputs[i] = tensor.transpose(0, -1) if tensor.dim() else tensor


def main() -> None:
    if _library.CPU_PROBLEM is not None:
        sys.exit(f'fuzz: {_library.CPU_PROBLEM}')
    calls, seed = (int(a) for a in (*sys.argv[1:], *('10000', '0')[len(sys.argv) - 1 :]))
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ops = torch.ops.ddetr_ops
    start, refused = time.time(), 0
    for call in range(1, calls + 1):
        fused, bad = rng.random() < 0.5, rng.random() < 0.25
        inputs, num_points = random_inputs(rng, fused)
        mask = [rng.random() < 0.7 for _ in range(4 if fused else 3)]
        if bad:
            spoil(rng, inputs)
        forward = ops.ms_deform_attn_fused_forward if fused else ops.ms_deform_attn_forward
        backward = ops.ms_deform_attn_fused_backward if fused else ops.ms_deform_attn_backward
        try:
            out = forward(*inputs, num_points)
            backward(*inputs, torch.randn(out.shape).to(out.dtype), False, num_points, mask)
        except RuntimeError:
            if not bad:
                raise
            refused += 1
        if call % 1000 == 0:
            rest = (time.time() - start) / call * (calls - call)
            print(f'{call} of {calls} calls, {refused} refused, {rest:.0f} s to go', flush=True)


if __name__ == '__main__':
    main()
