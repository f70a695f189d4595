"""New classification layers, for another number of classes."""

from typing import Any

import torch
from mmengine.model import bias_init_with_prob
from torch import nn

CLASS_PRIOR = 0.01  # probability at which sigmoid classifiers start (Lin et al., "Focal Loss", section 3.3)


@torch.no_grad()
def reset_linears(head: nn.Module, path: str, out_features: int, prior: float | None = None) -> list[str]:
    """Replace linear layers by new ones with `out_features` outputs; the names of the new tensors below `head`.

    Args:
        head: Holds them.
        path: Names the layer, or a list of layers, in which one layer may stand several times.
        out_features: Of the new layers.
        prior: Probability at which sigmoids of the outputs start; None for PyTorch's own start.
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
