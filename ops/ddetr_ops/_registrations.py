"""Register the operators with `torch.library`: fake kernels, autograd, autocast, vmap.

The stable ABI of PyTorch 2.10 supports only kernels, so the rest is registered from Python.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FORWARD = 'ddetr_ops::ms_deform_attn_forward'
BACKWARD = 'ddetr_ops::ms_deform_attn_backward'
FUSED_FORWARD = 'ddetr_ops::ms_deform_attn_fused_forward'
FUSED_BACKWARD = 'ddetr_ops::ms_deform_attn_fused_backward'
_INDICES = (1, 2)  # spatial_shapes, level_start_index: arguments without batch dimension and gradient


def _fake_forward(value: Tensor, *rest: Any) -> Tensor:
    tensors = [argument for argument in rest if isinstance(argument, Tensor)]
    locations = tensors[-2]  # fused: offsets; (B, Q, M, L, P, 2) or (B, Q, M, K, 2)
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _fake_backward(*arguments: Any, output_mask: Sequence[bool] = (), **_rest: Any) -> tuple[Tensor, ...]:
    *inputs, _grad_output = [argument for argument in arguments if isinstance(argument, Tensor)]
    options = [argument for argument in arguments if not isinstance(argument, Tensor)]
    if len(options) == 3:  # deterministic, num_points, output_mask
        output_mask = options[2]
    differentiable = [tensor for i, tensor in enumerate(inputs) if i not in _INDICES]
    wanted = output_mask or [True] * len(differentiable)
    return tuple(t.new_empty(t.shape if want else 0) for t, want in zip(differentiable, wanted, strict=True))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_points = inputs
    ctx.save_for_backward(*tensors)


def _backward_of(name: str) -> Any:
    op = getattr(torch.ops.ddetr_ops, name.split('::')[1]).default

    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        value, shapes, starts, *points = ctx.saved_tensors
        needed = ctx.needs_input_grad
        mask = [needed[0], *needed[3 : 3 + len(points)]]
        deterministic = torch.are_deterministic_algorithms_enabled()
        grads = op(value, shapes, starts, *points, grad_output, deterministic, ctx.num_points, mask)
        first, *rest = [grad if want else None for grad, want in zip(grads, mask, strict=True)]
        return (first, None, None, *rest, None)

    return backward


def _no_double_backward(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        'ddetr_ops: deformable attention does not support double backward: remove create_graph=True, or use '
        'ddetr_ops.reference, which is plain PyTorch'
    )


def _autocast_impl(name: str, device_type: str) -> Any:
    """Cast `value` to the autocast dtype; locations and weights keep their dtype."""
    op = getattr(torch.ops.ddetr_ops, name.split('::')[1]).default

    def run(value: Tensor, *rest: Any) -> Tensor:
        if value.dtype == torch.float32:
            value = value.to(torch.get_autocast_dtype(device_type))
        with torch.autocast(device_type, enabled=False):
            output: Tensor = op(value, *rest)
        return output

    return run


def _vmap_of(name: str) -> Any:
    """Fold the mapped dimension into the batch."""
    op = getattr(torch.ops.ddetr_ops, name.split('::')[1])

    def vmapped(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        folded = []
        for index, (argument, dim) in enumerate(zip(arguments, in_dims, strict=True)):
            if index in _INDICES or not isinstance(argument, Tensor):
                if dim is not None and not isinstance(dim, list):
                    raise ValueError('ddetr_ops: spatial_shapes and level_start_index cannot be vmapped over')
                folded.append(argument)
                continue
            moved = (
                argument.expand(info.batch_size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            )
            folded.append(moved.flatten(0, 1))
        result = op(*folded)

        def unfold(tensor: Tensor) -> Tensor:
            if tensor.dim() == 1:  # empty placeholder of a gradient that was not requested
                return tensor.expand(info.batch_size, 0)
            unfolded: Tensor = tensor.unflatten(0, (info.batch_size, -1))
            return unfolded

        if isinstance(result, Tensor):
            return unfold(result), 0
        return tuple(unfold(r) for r in result), (0,) * len(result)

    return vmapped


_LIBRARY = torch.library.Library('ddetr_ops', 'FRAGMENT')
for _forward, _backward in ((FORWARD, BACKWARD), (FUSED_FORWARD, FUSED_BACKWARD)):
    torch.library.register_fake(_forward, _fake_forward)
    torch.library.register_fake(_backward, _fake_backward)
    torch.library.register_autograd(_forward, _backward_of(_backward), setup_context=_save)
    torch.library.register_autograd(_backward, _no_double_backward)
    torch.library.register_vmap(_forward, _vmap_of(_forward))
    torch.library.register_vmap(_backward, _vmap_of(_backward))
    for _device in ('cpu', 'cuda'):
        _LIBRARY.impl(
            _forward.split('::')[1], _autocast_impl(_forward, _device), f'Autocast{_device.upper()}'
        )
