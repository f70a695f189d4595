"""ONNX export of the op, with standard ONNX operators (opset 16 or later) or as one node. Needs onnxscript.

    torch.onnx.export(model, inputs, 'model.onnx', dynamo=True,
                      custom_translation_table=ddetr_ops.onnx.translation_table())

Feature map sizes, batch size and number of queries may be dynamic. Locations must be finite, as for GridSample. Forms:

- `gridsample`: one GridSample per level, supported by every runtime.
- `gather`: four Gathers per level.
- `node`: one node `ddetr_ops::ms_deform_attn` with the arguments of `ddetr_ops.ms_deform_attn`, for runtimes with a
  kernel of that name.
- `tensorrt`: one node of TensorRT's plugin `MultiscaleDeformableAttnPlugin_TRT`, which uses int32 and returns
  (B, Q, M, D).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

FORMS = ('gridsample', 'gather', 'node', 'tensorrt')
DOMAINS = {'node': 'ddetr_ops', 'tensorrt': 'trt.plugins'}  # domains of the single-node forms
PLUGIN = 'MultiscaleDeformableAttnPlugin_TRT'

Translation = Callable[..., Any]


def translation_table(opset: int = 18, form: str = 'gridsample') -> dict[Any, Translation]:
    """Translations of the op and its fused version to ONNX, for `custom_translation_table`.

    Args:
        opset: Opset version of the export, from 16 to 22.
        form: One of `FORMS`.

    Raises:
        ImportError: onnxscript is not installed.
        ValueError: The opset has no GridSample, or the form is unknown.
    """
    try:
        import onnxscript
    except ImportError as error:
        raise ImportError('exporting to ONNX needs onnxscript: pip install onnxscript') from error
    if opset < 16:
        raise ValueError(f'opset {opset} has no GridSample: use 16 or later')
    if form not in FORMS:
        raise ValueError(f'form={form!r} must be one of {FORMS}')
    op = getattr(onnxscript, f'opset{opset}')
    if form == 'gridsample':
        classic = _classic_translation(op, 'bilinear' if opset < 20 else 'linear')  # renamed in opset 20
    elif form == 'gather':
        classic = _gather_translation(op)
    else:
        classic = _node_translation(op, form)
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


def _levels(
    op: Any, spatial_shapes: Any, level_start_index: Any, counts: Sequence[int]
) -> Iterator[tuple[Any, Any, tuple[Any, Any]]]:
    """Yield for each level its size (2,) h w, its first token (1,), and the range of its points (each (1,)), int64."""
    shapes, starts = op.Cast(spatial_shapes, to=7), op.Cast(level_start_index, to=7)  # int64
    first = 0
    for level, count in enumerate(counts):
        at = _ints(op, level), _ints(op, level + 1)
        size = op.Reshape(_piece(op, shapes, 0, *at), _ints(op, 2))
        yield size, _piece(op, starts, 0, *at), (_ints(op, first), _ints(op, first + count))
        first += count


def _classic_translation(op: Any, mode: str) -> Translation:
    # not annotated, because PyTorch's exporter would interpret annotations as tensor and attribute types
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
        total = None
        for size, start, points in _levels(op, spatial_shapes, level_start_index, counts):
            end = op.Add(start, op.ReduceProd(size, keepdims=1))
            image = op.Reshape(
                _piece(op, maps, 2, start, end), op.Concat(_ints(op, -1, channels), size, axis=0)
            )
            grid, weight = _piece(op, grids, 2, *points), _piece(op, weights, 3, *points)
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


def _gather_translation(op: Any) -> Translation:
    def gather(
        value: Any,
        spatial_shapes: Any,
        level_start_index: Any,
        sampling_locations: Any,
        attention_weights: Any,
        num_points: Sequence[int] = (),
    ) -> Any:
        """Names and shapes as in `ddetr_ops.ms_deform_attn`."""
        heads, channels = value.shape[2], value.shape[3]
        counts = _points_per_level(sampling_locations, num_points)
        batch, tokens = op.Shape(value, start=0, end=1), op.Shape(value, start=1, end=2)
        rows = op.Reshape(value, _ints(op, -1, channels))  # (B*S*M, D)
        images = op.Range(op.Constant(value_int=0), op.Squeeze(batch), op.Constant(value_int=1))
        images = op.Unsqueeze(op.Mul(images, tokens), _ints(op, 1, 2, 3))  # (B, 1, 1, 1), first token of each
        head = op.Unsqueeze(_ints(op, *range(heads)), _ints(op, 1))  # (M, 1)
        locations = _flat_points(op, sampling_locations, 2)  # (B, Q, M, K, 2)
        weights = _flat_points(op, attention_weights)  # (B, Q, M, K)
        zero, half, one = (op.CastLike(op.Constant(value_float=f), locations) for f in (0.0, 0.5, 1.0))
        total = None
        for size, start, points in _levels(op, spatial_shapes, level_start_index, counts):
            at, weight = _piece(op, locations, 3, *points), _piece(op, weights, 3, *points)
            axes = []  # y, then x: (lower cell, coefficient of the upper one), each (B, Q, M, P)
            for axis in range(2):
                side = op.CastLike(_piece(op, size, 0, _ints(op, axis), _ints(op, axis + 1)), locations)
                along = op.Gather(at, op.Constant(value_int=1 - axis), axis=4)
                pixel = op.Sub(op.Mul(along, side), half)
                low = op.Floor(pixel)
                axes.append((low, op.Sub(pixel, low), side))
            corners, coefficients = [], []
            for dy in range(2):
                for dx in range(2):
                    cells, part = [], weight
                    for (low, upper, side), step in zip(axes, (dy, dx), strict=True):
                        cell = op.Add(low, one) if step else low
                        inside = op.And(op.GreaterOrEqual(cell, zero), op.Less(cell, side))
                        part = op.Mul(part, upper if step else op.Sub(one, upper))
                        part = op.Mul(part, op.CastLike(inside, part))
                        clipped = op.Min(op.Max(cell, zero), op.Sub(side, one))
                        cells.append(op.Cast(clipped, to=7))
                    width = _piece(op, size, 0, _ints(op, 1), _ints(op, 2))
                    token = op.Add(op.Add(op.Mul(cells[0], width), cells[1]), op.Add(images, start))
                    corners.append(
                        op.Add(op.Mul(token, _ints(op, heads)), head)
                    )  # (B, Q, M, P), row of value
                    coefficients.append(part)
            read = op.Gather(rows, op.Concat(*corners, axis=3), axis=0)  # (B, Q, M, 4P, D)
            coefficient = op.Unsqueeze(op.Concat(*coefficients, axis=3), _ints(op, 3))  # (B, Q, M, 1, 4P)
            summed = op.MatMul(op.CastLike(coefficient, read), read)  # (B, Q, M, 1, D)
            total = summed if total is None else op.Add(total, summed)
        return op.Reshape(total, _ints(op, 0, 0, heads * channels))

    return gather


def _node_translation(op: Any, form: str) -> Translation:
    node = _custom_operator(form)

    def single_node(
        value: Any,
        spatial_shapes: Any,
        level_start_index: Any,
        sampling_locations: Any,
        attention_weights: Any,
        num_points: Sequence[int] = (),
    ) -> Any:
        """Names and shapes as in `ddetr_ops.ms_deform_attn`."""
        heads, channels = value.shape[2], value.shape[3]
        counts = _points_per_level(sampling_locations, num_points)
        if len(set(counts)) > 1:
            raise ValueError(f'form={form!r} needs the same number of points in every level, got {counts}')
        levels_and_points = len(counts), counts[0]
        locations = op.Reshape(sampling_locations, _ints(op, 0, 0, 0, *levels_and_points, 2))
        weights = op.Reshape(attention_weights, _ints(op, 0, 0, 0, *levels_and_points))
        shapes, starts = spatial_shapes, level_start_index
        if form == 'tensorrt':
            shapes, starts = op.Cast(shapes, to=6), op.Cast(starts, to=6)  # int32
        out = node(value, shapes, starts, locations, weights)
        return op.Reshape(out, _ints(op, 0, 0, heads * channels))

    return single_node


def _custom_operator(form: str) -> Any:
    """Custom (non-standard) ONNX operator for onnxscript."""
    import onnx
    from onnxscript.values import Op, Opset

    schema = onnx.defs.OpSchema
    index = 'tensor(int32)' if form == 'tensorrt' else 'tensor(int64)'
    name = PLUGIN if form == 'tensorrt' else 'ms_deform_attn'
    inputs = [('value', 'T'), ('spatial_shapes', index), ('level_start_index', index),
              ('sampling_locations', 'T'), ('attention_weights', 'T')]  # fmt: skip
    definition = schema(
        name,
        DOMAINS[form],
        1,
        inputs=[schema.FormalParameter(*pair) for pair in inputs],
        outputs=[schema.FormalParameter('out', 'T')],
        type_constraints=[('T', ['tensor(float)', 'tensor(float16)'], 'floating point')],
    )
    return Op(Opset(DOMAINS[form], 1), name, definition)


def _points_per_level(locations: Any, num_points: Any) -> list[int]:
    return list(num_points) or [locations.shape[4]] * locations.shape[3]


def _flat_points(op: Any, points: Any, *last: int) -> Any:
    """Flatten (B, Q, M, L, P, ...) or (B, Q, M, K, ...) to (B, Q, M, K, ...)."""
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
