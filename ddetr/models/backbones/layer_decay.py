"""Layer-wise learning-rate decay, by which early layers of a backbone change less (as in BEiT, Bao et al., 2022)."""

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ddetr.utils.errors import ConfigError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with a factor on the learning rate of each layer of the backbone.

    Layer i of n, counted from the stem as 0, trains with `decay_rate ** (n - i)` times its learning rate; everything
    behind the backbone keeps its own. The backbone's method `layer_groups()` returns the parameter names of each layer,
    stem first (see `TimmBackbone`).

    Args:
        optim_wrapper_cfg: As in mmengine.
        paramwise_cfg: mmengine's keys, applied first (a custom key's `lr_mult` and the layer's factor multiply), and
            `decay_rate`: Factor between successive layers, in (0, 1].
            `num_layers`: Number of layers behind the stem; the backbone's own are merged evenly into so many. None
            keeps them.
            `flat_decay_mult`: As in mmengine. For the backbone it holds also for parameters of a custom key without a
            `decay_mult`, and for those that the backbone lists in `no_weight_decay()`.

    Raises:
        ConfigError: A missing or impossible `decay_rate` or `num_layers`, or a model without `layer_groups()`.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate: Any = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ConfigError(f'optim_wrapper.paramwise_cfg.decay_rate={rate!r} must be a number in (0, 1].')
        self.decay_rate = float(rate)
        self.num_layers: int | None = self.paramwise_cfg.get('num_layers')

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: Any = None
    ) -> None:
        """mmengine's parameter groups; those of the backbone's layers get their factors. Called recursively."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        backbone: Any = next((part for part in module.modules() if hasattr(part, 'layer_groups')), None)
        if backbone is None:
            kind = type(getattr(module, 'backbone', module)).__name__
            raise ConfigError(
                f'LayerDecayOptimWrapperConstructor needs a backbone with layer_groups(), and {kind} has none: use '
                'TimmBackbone, or lr_mult in paramwise_cfg.custom_keys.'
            )
        factors = layer_factors(backbone.layer_groups(), self.decay_rate, self.num_layers)
        low, high = min(factors.values()), max(factors.values())
        # mmengine's own lines about each parameter say the rate before this factor
        rates = f'learning rates of the backbone times {low:.3g} (stem) to {high:.3g}'
        print_log(f'layer decay: {rates}', 'current')
        parameters = dict(backbone.named_parameters())
        by_id = {id(parameters[key]): factor for key, factor in factors.items()}
        flat = {id(p) for p in parameters.values() if p.ndim <= 1}
        flat |= {id(parameters[key]) for key in getattr(backbone, 'no_weight_decay', set)()}
        base_lr: Any = self.base_lr
        decay = None if self.base_wd is None else self.paramwise_cfg.get('flat_decay_mult')
        for group in params:
            (key,) = {id(p) for p in group['params']}
            if key in by_id:
                group['lr'] = group.get('lr', base_lr) * by_id[key]
            if key in flat and decay is not None and 'decay_mult' not in group:
                group['weight_decay'] = self.base_wd * decay


def layer_factors(
    groups: Sequence[Sequence[str]], decay_rate: float, num_layers: int | None = None
) -> dict[str, float]:
    """Learning-rate factor of each parameter; `groups` are the names of each layer's parameters, the stem first.

    Raises:
        ConfigError: `num_layers` is not between 1 and the number of layers.
    """
    there = len(groups) - 1
    wanted = there if num_layers is None else num_layers
    if not (isinstance(wanted, int) and 1 <= wanted <= there):
        raise ConfigError(
            f'optim_wrapper.paramwise_cfg.num_layers={num_layers!r} must be between 1 and {there}, the number of '
            'layers behind the stem of the backbone.'
        )
    layers = [0, *(1 + i * wanted // there for i in range(there))]
    ranked = zip(groups, layers, strict=True)
    return {name: decay_rate ** (wanted + 1 - layer) for names, layer in ranked for name in names}
