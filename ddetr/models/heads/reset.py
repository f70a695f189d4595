"""New classification layers, for another number of classes."""

import torch
from mmengine.model import bias_init_with_prob
from torch import nn

CLASS_PRIOR = 0.01  # probability at which sigmoid classifiers start (Lin et al., "Focal Loss", section 3.3)


@torch.no_grad()
def reset_linears(head: nn.Module, path: str, out_features: int, prior: float | None = None) -> list[str]:
    """Replace linear layers by new ones with another number of outputs.

    Args:
        head: Holds them.
        path: Names the layer, or a list of layers, in which one layer may stand several times.
        out_features: Of the new layers.
        prior: Probability at which sigmoids of the outputs start; None for PyTorch's own start.

    Returns:
        The names of the new tensors below `head`.
    """
    target = head.get_submodule(path)
    slots = (
        [(target, str(i)) for i in range(len(target))]
        if isinstance(target, nn.ModuleList)
        else [(head, path)]
    )
    made: dict[nn.Module, nn.Linear] = {}
    for parent, name in slots:
        old = parent.get_submodule(name)
        if old not in made:
            assert isinstance(old, nn.Linear)
            made[old] = nn.Linear(
                old.in_features, out_features, device=old.weight.device, dtype=old.weight.dtype
            )
            if prior is not None:
                nn.init.constant_(made[old].bias, bias_init_with_prob(prior))
        setattr(parent, name, made[old])
    return [name for name in head.state_dict() if name.startswith(f'{path}.')]
