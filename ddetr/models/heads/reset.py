"""Replace classification layers to change the number of classes."""

from typing import Any

import torch
from mmengine.model import bias_init_with_prob
from torch import nn

CLASS_PRIOR = 0.01  # initial probability of sigmoid classifiers (Lin et al., "Focal Loss", section 3.3)


@torch.no_grad()
def reset_linears(head: nn.Module, path: str, out_features: int, prior: float | None = None) -> list[str]:
    """Replace linear layers with new ones of `out_features` outputs.

    Args:
        head: Module that contains the layers.
        path: Name of a layer or of a `ModuleList` of layers, which may contain the same layer several times.
        out_features: Number of outputs of the new layers.
        prior: Initial probability of the sigmoid outputs; None keeps PyTorch's default initialisation.

    Returns:
        Names of the new tensors in the state dict of `head`.
    """
    target = head.get_submodule(path)
    listed = isinstance(target, nn.ModuleList)
    parent, names = (target, [*target._modules]) if listed else (head, [path])
    made: dict[nn.Module, nn.Linear] = {}
    for name in names:
        old: Any = parent.get_submodule(name)
        if old not in made:
            like = {'device': old.weight.device, 'dtype': old.weight.dtype}
            made[old] = nn.Linear(old.in_features, out_features, **like)
            if prior is not None:
                nn.init.constant_(made[old].bias, bias_init_with_prob(prior))
        setattr(parent, name, made[old])
    return [name for name in head.state_dict() if name.startswith(f'{path}.')]
