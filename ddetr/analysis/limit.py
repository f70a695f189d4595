"""Lower bound of a detector's run time: its convolutions and linear layers alone, each at its fastest."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddetr.models.inference_form import PackedLinear, can_pack

TRIES = 3  # runs of each implementation of a layer; the fastest counts


class LayerCall(NamedTuple):
    """Properties that determine the run time of a layer."""

    shape: torch.Size  # of the input; rows and channels for linear layers
    weight: torch.Size
    geometry: tuple | None  # padding, stride, dilation, groups; None for linear layers


@torch.no_grad()
def layer_calls(model: Any, batch: dict[str, list]) -> Counter[LayerCall]:
    """Count the calls of convolutions, linear layers and attention projections during inference on a batch."""
    calls: Counter[LayerCall] = Counter()

    def note(module: Any, args: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            geometry = module.padding, module.stride, module.dilation, module.groups
            calls[LayerCall(args[0].shape, module.weight.shape, geometry)] += 1
        elif isinstance(module, nn.MultiheadAttention):
            width = module.embed_dim
            for tensor in (*args[:3], output[0]):
                rows = tensor.numel() // tensor.shape[-1]
                calls[LayerCall(torch.Size((rows, width)), torch.Size((width, width)), None)] += 1
        else:
            rows = args[0].numel() // args[0].shape[-1]
            calls[LayerCall(torch.Size((rows, module.in_features)), module.weight.shape, None)] += 1

    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    model.eval().test_step(batch)
    for handle in handles:
        handle.remove()
    return +Counter({call: count for call, count in calls.items() if call.shape.numel()})


def limit_step(model: Any, batch: dict[str, list], dtype: torch.dtype = torch.float32) -> Callable[[], Any]:
    """Return a function that runs each layer of a detector at its own size with its fastest implementation."""
    calls = layer_calls(model, batch)
    numbers = torch.randn(max(call.shape.numel() for call in calls), dtype=dtype)
    with torch.no_grad():
        runs = [(_fastest(_ways(call, numbers)), count) for call, count in calls.items()]

    @torch.no_grad()
    def step() -> None:
        for run, count in runs:
            for _ in range(count):
                run()

    return step


def _ways(call: LayerCall, numbers: Tensor) -> list[Callable[[], Any]]:
    """Return alternative implementations of a layer with random weights, on input taken from `numbers`."""
    x, dtype = numbers[: call.shape.numel()].view(call.shape), numbers.dtype
    pack = can_pack(dtype)
    if call.geometry is None:
        linear = nn.Linear(call.weight[1], call.weight[0]).to(dtype).requires_grad_(False)
        layers = [linear, PackedLinear(linear)] if pack else [linear]
        return [lambda layer=layer: layer(x) for layer in layers]  # type: ignore[misc]
    padding, stride, dilation, groups = call.geometry
    conv = nn.Conv2d(call.shape[1], call.weight[0], tuple(call.weight[2:]), stride, padding, dilation, groups)  # type: ignore[arg-type]
    conv = conv.to(dtype).requires_grad_(False)
    last = conv.weight.to(memory_format=torch.channels_last)
    batch, channels, height, width = call.shape
    x_last = x.view(batch, height, width, channels).permute(0, 3, 1, 2)
    ways: list[Callable[[], Any]] = [
        lambda: conv(x),
        lambda: F.conv2d(x_last, last, conv.bias, stride, padding, dilation, groups),
    ]
    if pack:
        shaped = (padding, stride, dilation, groups)
        packed = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *shaped, list(call.shape))
        ways.append(
            lambda: torch.ops.mkldnn._convolution_pointwise(
                x_last, packed, conv.bias, *shaped, 'none', [], ''
            )
        )
    return ways


def _fastest(ways: list[Callable[[], Any]]) -> Callable[[], Any]:
    def seconds(way: Callable[[], Any]) -> float:
        way()
        times = []
        for _ in range(TRIES):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        return min(times)

    return min(ways, key=seconds)
