"""Layer-wise learning-rate decay for backbones (as in BEiT, Bao et al., 2022)."""

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ddetr.utils.errors import ConfigError


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's optimizer constructor with layer-wise learning-rate decay for the backbone.

    The learning rate of layer i is multiplied by `decay_rate ** (n + 1 - i)`, where the stem is layer 0 and n is the
    number of layers after it; parameters outside the backbone keep theirs. The backbone's `layer_groups()` method
    returns the parameter names of each layer, stem first (see `TimmBackbone`).

    Args:
        optim_wrapper_cfg: As in mmengine.
        paramwise_cfg: mmengine's keys, which are applied first (`lr_mult` and the layer's factor multiply), and
            `decay_rate`: Factor between successive layers, in (0, 1].
            `num_layers`: Number of layers after the stem; the backbone's layers are merged evenly into this many.
            None keeps the backbone's own layers.
            `flat_decay_mult`: As in mmengine. In the backbone it also applies to parameters with a custom key that
            lacks `decay_mult`, and to those listed by the backbone's `no_weight_decay()`.

    Raises:
        ConfigError: Missing or invalid `decay_rate` or `num_layers`, or a model without `layer_groups()`.
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
        """Build mmengine's parameter groups and scale those of the backbone. Called recursively."""
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        backbone: Any = next((part for part in module.modules() if hasattr(part, 'layer_groups')), None)
        if backbone is None:
            kind = type(getattr(module, 'backbone', module)).__name__
            raise ConfigError(
                f'LayerDecayOptimWrapperConstructor needs a backbone with layer_groups(), but {kind} has none: use '
                'TimmBackbone, or lr_mult in paramwise_cfg.custom_keys.'
            )
        factors = layer_factors(backbone.layer_groups(), self.decay_rate, self.num_layers)
        low, high = min(factors.values()), max(factors.values())
        # mmengine's per-parameter log lines show the rate before this factor
        rates = f'backbone learning rates scaled by {low:.3g} (stem) to {high:.3g}'
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
    """Learning-rate factor of each parameter, by name.

    Args:
        groups: Parameter names of each layer, stem first.
        decay_rate: Factor between successive layers.
        num_layers: Number of layers after the stem to merge them into; None keeps all.

    Raises:
        ConfigError: `num_layers` is not between 1 and the number of layers.
    """
    there = len(groups) - 1
    wanted = there if num_layers is None else num_layers
    if not (isinstance(wanted, int) and 1 <= wanted <= there):
        raise ConfigError(
            f'optim_wrapper.paramwise_cfg.num_layers={num_layers!r} must be between 1 and {there}, the number of '
            'backbone layers after the stem.'
        )
    layers = [0, *(1 + i * wanted // there for i in range(there))]
    ranked = zip(groups, layers, strict=True)
    return {name: decay_rate ** (wanted + 1 - layer) for names, layer in ranked for name in names}
