"""Inference optimisations for any detector: folded norms, fused convolutions, packed linear layers, tiled MLPs.

Layers to replace are found by their type and by tracing the data flow. Packed and fused layers use private PyTorch
operators, the ones used by torch.compile's CPU backend; `can_pack` checks whether they work on this machine.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

ROW_TILE = 2048  # rows per tile, so that the hidden activations of a feed-forward network stay in the cache
CHANNELS_LAST = torch.channels_last


def has_bf16_instructions() -> bool:
    """Whether oneDNN supports bfloat16 on this CPU. Otherwise PyTorch falls back to its own, slow kernels."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:  # operator removed in this PyTorch version
        return True


@lru_cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's packed and fused layers for CPU tensors of this dtype, with correct results."""
    if dtype is not torch.float32 and not has_bf16_instructions():
        return False
    linear, conv = nn.Linear(4, 4).to(dtype), nn.Conv2d(4, 4, 1).to(dtype)
    x = torch.randn(2, 4, dtype=dtype)
    with torch.no_grad():
        try:
            found = PackedLinear(linear)(x), FusedConv2d(conv)(x[..., None, None], x[..., None, None])
        except (AttributeError, RuntimeError, TypeError):  # operators removed or with another signature
            return False
        true = linear(x), conv(x[..., None, None]) + x[..., None, None]
        return all(
            torch.allclose(a, b, atol=1e-5 if dtype is torch.float32 else 0.1)
            for a, b in zip(found, true, strict=True)
        )


class PackedLinear(nn.Module):
    """Linear layer with its weight packed for oneDNN and an optional fused ReLU. Inputs are cast to its dtype."""

    packed: Tensor  # opaque

    def __init__(self, linear: nn.Linear, relu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = (
            linear.in_features,
            linear.out_features,
            linear.weight.dtype,
        )
        self.activation = 'relu' if relu else 'none'
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROW_TILE)
        self.register_buffer('packed', packed, persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        """(out, in), unpacked."""
        return self.packed.to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        x = x.to(self.dtype)
        if not x.numel():  # oneDNN does not support empty tensors
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, self.activation, [], '')


class FusedConv2d(nn.Module):
    """channels_last convolution with optional fused addition and ReLU. Inputs are cast to its dtype.

    Its weight is not packed: oneDNN's fastest layout depends on the input size, and with the layout of another size
    some layers of a ResNet-50 take three times as long. A plain weight is reordered in every call, in 1% of the time.
    """

    weight: Tensor  # (out, in / groups, h, w)

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        self.dtype, self.relu = conv.weight.dtype, relu
        weight = conv.weight.detach().contiguous(memory_format=CHANNELS_LAST)
        self.register_buffer('weight', weight, persistent=False)
        self.bias = conv.bias

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W'); `added` (B, out, H', W') is added to the result before the ReLU."""
        x = x.to(self.dtype, memory_format=CHANNELS_LAST)
        padding, stride, dilation, groups = self.geometry
        if not x.numel():
            out = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            out = out if added is None else out + added
            return out.relu() if self.relu else out
        unary = 'relu' if self.relu else 'none'
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, unary, [], ''
            )
        fused = 'relu' if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, added.to(self.dtype), self.weight, self.bias, *self.geometry, 'add', None, fused, [], None
        )


class FusedBlock(nn.Module):
    """torchvision ResNet block with batch norms, ReLUs and the residual addition fused into the convolutions."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        convs = [conv for name, conv in block.named_children() if name.startswith('conv')]
        self.convs = nn.ModuleList(FusedConv2d(conv, relu=True) for conv in convs)
        shortcut = block.downsample
        self.shortcut = None if shortcut is None else FusedConv2d(shortcut[0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        inner, last = self.convs[:-1], self.convs[-1]
        added = x if self.shortcut is None else self.shortcut(x)
        for conv in inner:
            x = conv(x)
        return last(x, added)


class TiledMLP(nn.Module):
    """Linear layers and ReLUs that process `ROW_TILE` rows at a time, so that activations stay in the cache.

    Tiling does not change the result of any row.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.out_features = next(
            layer.out_features for layer in layers[::-1] if hasattr(layer, 'out_features')
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.flatten(0, -2)
        if len(rows) <= ROW_TILE:
            return self.layers(x)
        return torch.cat([self.layers(tile) for tile in rows.split(ROW_TILE)]).unflatten(0, x.shape[:-1])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


def conv_norm_pairs(module: nn.Module, prefix: str = '') -> Iterator[tuple[str, str]]:
    """Find convolutions whose output feeds exactly one batch norm, and yield the names of both.

    The data flow is traced with torch.fx. If a module cannot be traced, its children are traced instead.
    """
    if not any(isinstance(m, _BatchNorm) for m in module.modules()):
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # code that inspects values or sizes can raise anything on a proxy
        for name, child in module.named_children():
            yield from conv_norm_pairs(child, f'{prefix}{name}.')
        return
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == 'call_module':
            calls[str(node.target)].append(node)
    for name, nodes in calls.items():
        users = [user for node in nodes for user in node.users]
        targets = {str(user.target) for user in users if user.op == 'call_module'}
        if type(module.get_submodule(name)) is not nn.Conv2d or len(users) != len(nodes) or len(targets) != 1:
            continue
        (norm,) = targets
        if isinstance(module.get_submodule(norm), _BatchNorm) and len(calls[norm]) == len(nodes):
            yield prefix + name, prefix + norm


def fold_norms(model: nn.Module) -> int:
    """Fold batch norms with running statistics into the preceding convolutions, in place. Return their number."""
    folded = 0
    for conv_name, norm_name in list(conv_norm_pairs(model)):
        conv: Any = model.get_submodule(conv_name)
        norm: Any = model.get_submodule(norm_name)
        if type(norm).forward is not nn.BatchNorm2d.forward or norm.running_mean is None:
            continue
        model.set_submodule(conv_name, fuse_conv_bn_eval(conv, norm))
        model.set_submodule(norm_name, nn.Identity())
        folded += 1
    return folded


def pack_layers(model: nn.Module) -> None:
    """Replace feed-forward networks by tiled ones and, where `can_pack` allows, layers by packed ones, in place.

    Subclasses with their own forward are left unchanged. Shared layers remain shared.
    """
    _replace(model, {})


def _replace(parent: nn.Module, made: dict[int, nn.Module]) -> None:
    for name, child in parent._modules.items():
        if child is None:
            continue
        if id(child) not in made:
            made[id(child)] = _inference_layer(child) or child
            if made[id(child)] is child:
                _replace(child, made)
        parent._modules[name] = made[id(child)]


def _inference_layer(module: Any) -> nn.Module | None:
    if layers := _mlp_layers(module):
        return TiledMLP(layers)
    if _is_folded_block(module) and _packs(module.conv1):
        return FusedBlock(module)
    if type(module) is nn.Linear and _packs(module):
        return PackedLinear(module)
    if type(module) is nn.Conv2d and _packs(module):
        return FusedConv2d(module)
    return None


def _packs(layer: nn.Linear | nn.Conv2d) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != 'zeros' or isinstance(layer.padding, str)):
        return False
    return layer.weight.device.type == 'cpu' and can_pack(layer.weight.dtype)


def _is_folded_block(module: Any) -> bool:
    """Whether `module` is a torchvision ResNet block with all batch norms folded."""
    if type(module) not in (BasicBlock, Bottleneck):
        return False
    norms = [m for name, m in module.named_children() if name.startswith('bn')]
    shortcut = module.downsample
    folded = all(isinstance(m, nn.Identity) for m in norms + ([] if shortcut is None else [*shortcut[1:]]))
    return folded and (shortcut is None or type(shortcut[0]) is nn.Conv2d)


def _mlp_layers(module: nn.Module) -> list[nn.Module]:
    """Layers of a feed-forward network, packed if possible; [] for other modules."""
    if type(module) is not nn.Sequential:
        return []
    steps = [m for m in _flat(module) if not isinstance(m, (nn.Dropout, nn.Identity))]
    linears = [m for m in steps if type(m) is nn.Linear]
    if len(linears) < 2 or any(type(m) not in (nn.Linear, nn.ReLU) for m in steps):
        return []
    if linears[0].weight.device.type != 'cpu':  # tiling does not help on a GPU
        return []
    if not all(map(_packs, linears)):
        return steps
    followers = [*steps[1:], None]
    return [
        PackedLinear(step, relu=isinstance(after, nn.ReLU))
        for step, after in zip(steps, followers, strict=True)
        if isinstance(step, nn.Linear)
    ]


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if type(child) is nn.Sequential:
            yield from _flat(child)
        else:
            yield child
