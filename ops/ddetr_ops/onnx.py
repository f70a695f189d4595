"""Export to ONNX: the op as GridSample, one per level (opset 16 and later). Needs `pip install onnxscript`.

    torch.onnx.export(model, inputs, 'model.onnx', dynamo=True,
                      custom_translation_table=ddetr_ops.onnx.translation_table())

Sizes of the maps, batch and queries may all be dynamic. As GridSample has it, locations must be finite.
"""

from collections.abc import Callable
from typing import Any

import torch


def translation_table(opset: int = 18) -> dict[Callable, Callable]:
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


def _classic_translation(op: Any, mode: str) -> Callable:
    def classic(value, spatial_shapes, level_start_index, sampling_locations, attention_weights):
        """Names and shapes as in `ddetr_ops.ms_deform_attn`."""
        heads, channels = value.shape[2], value.shape[3]
        levels, points = sampling_locations.shape[3], sampling_locations.shape[4]
        tokens = op.Shape(value, start=1, end=2)
        maps = op.Transpose(value, perm=[0, 2, 3, 1])  # (B, M, D, S)
        maps = op.Reshape(maps, op.Concat(_ints(op, -1, channels), tokens, axis=0))  # (B*M, D, S)
        where = op.Transpose(sampling_locations, perm=[0, 2, 1, 3, 4, 5])  # (B, M, Q, L, P, 2)
        queries = op.Shape(sampling_locations, start=1, end=2)
        where = op.Reshape(where, op.Concat(_ints(op, -1), queries, _ints(op, levels, points, 2), axis=0))
        grids = op.Sub(op.Mul(where, op.CastLike(op.Constant(value_float=2.0), where)),
                       op.CastLike(op.Constant(value_float=1.0), where))  # fmt: skip
        weights = op.Transpose(attention_weights, perm=[0, 2, 1, 3, 4])  # (B, M, Q, L, P)
        weights = op.Reshape(weights, op.Concat(_ints(op, -1, 1), queries, _ints(op, levels, points), axis=0))
        shapes = op.Cast(spatial_shapes, to=7)  # int64
        starts = op.Cast(level_start_index, to=7)
        total = None
        for level in range(levels):
            size = op.Reshape(
                _piece(op, shapes, 0, _ints(op, level), _ints(op, level + 1)), _ints(op, 2)
            )  # h, w
            start = _piece(op, starts, 0, _ints(op, level), _ints(op, level + 1))
            end = op.Add(start, op.ReduceProd(size, keepdims=1))
            image = op.Reshape(
                _piece(op, maps, 2, start, end), op.Concat(_ints(op, -1, channels), size, axis=0)
            )
            grid = op.Squeeze(
                _piece(op, grids, 2, _ints(op, level), _ints(op, level + 1)), _ints(op, 2)
            )  # (B*M, Q, P, 2)
            weight = op.Squeeze(
                _piece(op, weights, 3, _ints(op, level), _ints(op, level + 1)), _ints(op, 3)
            )  # (B*M, 1, Q, P)
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


def _fused_translation(op: Any, classic: Callable) -> Callable:
    def fused(value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits):
        """Names and shapes as in `ddetr_ops.ms_deform_attn_fused`."""
        levels, points = sampling_offsets.shape[3], sampling_offsets.shape[4]
        references = op.Unsqueeze(reference_points, _ints(op, 2, 4))  # (B, Q, 1, L, 1, 2 or 4)
        centers = _piece(op, references, 5, _ints(op, 0), _ints(op, 2))
        if reference_points.shape[3] == 2:
            shapes = op.CastLike(spatial_shapes, sampling_offsets)
            sizes = op.Concat(
                _piece(op, shapes, 1, _ints(op, 1), _ints(op, 2)),
                _piece(op, shapes, 1, _ints(op, 0), _ints(op, 1)),
                axis=1,
            )
            moved = op.Div(sampling_offsets, op.Unsqueeze(sizes, _ints(op, 1)))  # by (L, 1, 2): w and h
        else:
            half = op.CastLike(op.Constant(value_float=0.5 / points), sampling_offsets)
            extents = op.CastLike(_piece(op, references, 5, _ints(op, 2), _ints(op, 4)), sampling_offsets)
            moved = op.Mul(op.Mul(sampling_offsets, half), extents)
        locations = op.Add(op.CastLike(centers, moved), moved)
        weights = op.Softmax(attention_logits, axis=-1)
        heads = sampling_offsets.shape[2]
        queries = op.Shape(sampling_offsets, start=1, end=2)
        weights = op.Reshape(
            weights, op.Concat(_ints(op, -1), queries, _ints(op, heads, levels, points), axis=0)
        )
        # The classic translation reads static sizes off its inputs, which new values do not have yet.
        locations.shape = sampling_offsets.shape
        return classic(value, spatial_shapes, level_start_index, locations, weights)

    return fused
