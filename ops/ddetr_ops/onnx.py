"""Export to ONNX: the op as GridSample, one per level (opset 16 and later). Needs `pip install onnxscript`.

    torch.onnx.export(model, inputs, 'model.onnx', dynamo=True,
                      custom_translation_table=ddetr_ops.onnx.translation_table())

Sizes of the maps, batch and queries may all be dynamic. As GridSample has it, locations must be finite.
"""

from collections.abc import Callable
from typing import Any

import torch

Translation = Callable[..., Any]


def translation_table(opset: int = 18) -> dict[Any, Translation]:
    """The op and its fused form in terms of ONNX's operators, for `custom_translation_table`.

    Args:
        opset: the opset version that the export will have, from 16 to 22.

    Raises:
        ImportError: onnxscript is not installed.
        ValueError: the opset has no GridSample.
    """
    try:
        import onnxscript
    except ImportError as error:
        raise ImportError('exporting to ONNX needs onnxscript: pip install onnxscript') from error
    if opset < 16:
        raise ValueError(f'opset {opset} has no GridSample: take 16 or later')
    op = getattr(onnxscript, f'opset{opset}')
    classic = _classic_translation(op, 'bilinear' if opset < 20 else 'linear')  # renamed in opset 20
    fused = _fused_translation(op, classic)
    names = torch.ops.ddetr_ops
    return {
        names.ms_deform_attn_forward.default: classic,
        names.ms_deform_attn_fused_forward.default: fused,
    }


def _ints(op: Any, *numbers: int) -> Any:
    return op.Constant(value_ints=list(numbers))


def _piece(op: Any, tensor: Any, axis: int, start: Any, end: Any) -> Any:
    return op.Slice(tensor, start, end, _ints(op, axis))


def _classic_translation(op: Any, mode: str) -> Translation:
    # no annotations: PyTorch's exporter would read them as types of tensors and attributes
    def classic(  # type: ignore[no-untyped-def]
        value, spatial_shapes, level_start_index, sampling_locations, attention_weights, num_points=()
    ):
        """Names and shapes as in `ddetr_ops.ms_deform_attn`."""
        heads, channels = value.shape[2], value.shape[3]
        counts = _points_per_level(sampling_locations, num_points)
        tokens = op.Shape(value, start=1, end=2)
        maps = op.Transpose(value, perm=[0, 2, 3, 1])  # (B, M, D, S)
        maps = op.Reshape(maps, op.Concat(_ints(op, -1, channels), tokens, axis=0))  # (B*M, D, S)
        queries = op.Shape(sampling_locations, start=1, end=2)
        locations = _flat_points(op, sampling_locations, 2)  # (B, Q, M, K, 2)
        locations = op.Transpose(locations, perm=[0, 2, 1, 3, 4])
        locations = op.Reshape(
            locations, op.Concat(_ints(op, -1), queries, _ints(op, sum(counts), 2), axis=0)
        )
        grids = op.Sub(op.Mul(locations, op.CastLike(op.Constant(value_float=2.0), locations)),
                       op.CastLike(op.Constant(value_float=1.0), locations))  # (B*M, Q, K, 2)  # fmt: skip
        weights = op.Transpose(_flat_points(op, attention_weights), perm=[0, 2, 1, 3])  # (B, M, Q, K)
        weights = op.Reshape(weights, op.Concat(_ints(op, -1, 1), queries, _ints(op, sum(counts)), axis=0))
        shapes = op.Cast(spatial_shapes, to=7)  # int64
        starts = op.Cast(level_start_index, to=7)
        total, first = None, 0
        for level, count in enumerate(counts):
            size = op.Reshape(
                _piece(op, shapes, 0, _ints(op, level), _ints(op, level + 1)), _ints(op, 2)
            )  # h, w
            start = _piece(op, starts, 0, _ints(op, level), _ints(op, level + 1))
            end = op.Add(start, op.ReduceProd(size, keepdims=1))
            image = op.Reshape(
                _piece(op, maps, 2, start, end), op.Concat(_ints(op, -1, channels), size, axis=0)
            )
            points = _ints(op, first), _ints(op, first + count)
            grid, weight = _piece(op, grids, 2, *points), _piece(op, weights, 3, *points)
            first += count
            sampled = op.GridSample(
                image, op.CastLike(grid, image), align_corners=0, mode=mode, padding_mode='zeros'
            )
            part = op.ReduceSum(
                op.Mul(sampled, op.CastLike(weight, sampled)), _ints(op, 3), keepdims=0
            )  # (B*M, D, Q)
            total = part if total is None else op.Add(total, part)
        out = op.Reshape(total, op.Concat(_ints(op, -1, heads * channels), queries, axis=0))  # (B, M*D, Q)
        return op.Transpose(out, perm=[0, 2, 1])

    return classic


def _points_per_level(locations: Any, num_points: Any) -> list[int]:
    return list(num_points) or [locations.shape[4]] * locations.shape[3]


def _flat_points(op: Any, points: Any, *last: int) -> Any:
    """(B, Q, M, L, P, ...) or (B, Q, M, K, ...) as (B, Q, M, K, ...)."""
    return op.Reshape(points, _ints(op, 0, 0, 0, -1, *last))


def _fused_translation(op: Any, classic: Translation) -> Translation:
    def fused(  # type: ignore[no-untyped-def]
        value,
        spatial_shapes,
        level_start_index,
        reference_points,
        sampling_offsets,
        attention_logits,
        num_points=(),
    ):
        """Names and shapes as in `ddetr_ops.ms_deform_attn_fused`."""
        counts = _points_per_level(sampling_offsets, num_points)
        level_of_point = _ints(op, *(level for level, count in enumerate(counts) for _ in range(count)))
        offsets = _flat_points(op, sampling_offsets, 2)  # (B, Q, M, K, 2)
        references = op.Gather(reference_points, level_of_point, axis=2)  # (B, Q, K, 2 or 4)
        references = op.Unsqueeze(references, _ints(op, 2))
        centers = _piece(op, references, 4, _ints(op, 0), _ints(op, 2))
        if reference_points.shape[3] == 2:
            sizes = op.Gather(spatial_shapes, level_of_point, axis=0)  # (K, 2), h and w
            sizes = op.CastLike(op.Gather(sizes, _ints(op, 1, 0), axis=1), offsets)  # w and h
            moved = op.Div(offsets, sizes)
        else:
            halves = [0.5 / count for count in counts for _ in range(count)]
            half = op.CastLike(
                op.Unsqueeze(op.Constant(value_floats=halves), _ints(op, 1)), offsets
            )  # (K, 1)
            extents = op.CastLike(_piece(op, references, 4, _ints(op, 2), _ints(op, 4)), offsets)
            moved = op.Mul(op.Mul(offsets, half), extents)
        locations = op.Add(op.CastLike(centers, moved), moved)
        weights = op.Softmax(attention_logits, axis=-1)
        return classic(value, spatial_shapes, level_start_index, locations, weights, counts)

    return fused
