"""Inputs of the op, and a slow but simple implementation with loops."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SHAPES = ((5, 7), (3, 4), (1, 1))


class Inputs(NamedTuple):
    value: Tensor  # (B, S, M, D)
    spatial_shapes: Tensor  # (L, 2)
    level_start_index: Tensor  # (L,)
    sampling_locations: Tensor  # (B, Q, M, L, P, 2)
    attention_weights: Tensor  # (B, Q, M, L, P)


class FusedInputs(NamedTuple):
    value: Tensor
    spatial_shapes: Tensor
    level_start_index: Tensor
    reference_points: Tensor  # (B, Q, L, 2 or 4)
    sampling_offsets: Tensor  # (B, Q, M, L, P, 2)
    attention_logits: Tensor  # (B, Q, M, L * P)


def levels_of(shapes) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor([h * w for h, w in shapes], dtype=torch.int64)
    return torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2), sizes.cumsum(0) - sizes


def make_inputs(
    shapes=SHAPES, batch=2, queries=6, heads=2, channels=8, points=3, dtype=torch.float64, seed=0
) -> Inputs:
    """Locations from -0.2 to 1.2, so that some lie across each border and some far outside."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.rand(*size, generator=generator, dtype=torch.float64)

    spatial_shapes, starts = levels_of(shapes)
    tokens, levels = int(sum(h * w for h, w in shapes)), len(shapes)
    value = random(batch, tokens, heads, channels) - 0.5
    locations = random(batch, queries, heads, levels, points, 2) * 1.4 - 0.2
    weights = random(batch, queries, heads, levels, points)
    return Inputs(value.to(dtype), spatial_shapes, starts, locations.to(dtype), weights.to(dtype))


def make_fused_inputs(reference_dim=2, dtype=torch.float64, seed=0, **sizes) -> FusedInputs:
    inputs = make_inputs(dtype=dtype, seed=seed, **sizes)
    generator = torch.Generator().manual_seed(seed + 1)
    batch, queries, heads, levels, points, _ = inputs.sampling_locations.shape
    references = torch.rand(batch, queries, levels, reference_dim, generator=generator, dtype=torch.float64)
    offsets = (
        torch.randn(batch, queries, heads, levels, points, 2, generator=generator, dtype=torch.float64) * 2
    )
    logits = torch.randn(batch, queries, heads, levels * points, generator=generator, dtype=torch.float64) * 2
    return FusedInputs(*inputs[:3], references.to(dtype), offsets.to(dtype), logits.to(dtype))


def by_loops(inputs: Inputs) -> Tensor:
    """Equation 3 of the paper, point by point, in Python's floats."""
    value, shapes, starts, locations, weights = (t.tolist() for t in inputs)
    batch, queries, heads, levels, points = inputs.attention_weights.shape
    out = torch.zeros(batch, queries, heads, inputs.value.shape[3], dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                for level in range(levels):
                    height, width = shapes[level]
                    for p in range(points):
                        x = locations[b][q][m][level][p][0] * width - 0.5
                        y = locations[b][q][m][level][p][1] * height - 0.5
                        if not (-1 < x < width and -1 < y < height):
                            continue
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if not (0 <= row < height and 0 <= column < width):
                                    continue
                                share = (1 - abs(y - row)) * (1 - abs(x - column))
                                if share == 0:  # 0 * NaN is NaN
                                    continue
                                pixel = value[b][starts[level] + row * width + column][m]
                                weight = weights[b][q][m][level][p]
                                out[b, q, m] += torch.tensor(pixel, dtype=torch.float64) * (share * weight)
    return out.flatten(2)
