"""timm models (PyTorch Image Models, Wightman, 2019) as backbones, through timm's `features_only` interface.

timm is an optional dependency, imported only when a `TimmBackbone` is built.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ddetr.registry import MODELS
from ddetr.utils.errors import CheckpointError, ConfigError, did_you_mean, first_line
from ddetr.weights import State

from .timm_weights import feature_names, read_timm_weights

DEFAULT_STRIDES = (8, 16, 32)
# timm keywords covered by `TimmBackbone` arguments, and those that would bypass the safe checkpoint reader
RESERVED = {
    **{key: key for key in ('model_name', 'out_indices', 'pretrained', 'drop_path_rate')},
    **dict.fromkeys(('checkpoint_path', 'pretrained_cfg', 'pretrained_cfg_overlay'), 'checkpoint'),
    'features_only': 'out_indices or out_strides',
    'in_chans': 'in_channels',
}
FEATURE_OPTIONS = ('feature_cls', 'feature_location')  # accepted by timm only with `features_only`


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Backbone that returns feature levels of a timm model.

    Channels and strides are read from the model; a neck without `in_channels` uses `out_channels`. Image sizes that
    the model does not support are zero-padded at the right and bottom. Pretrained weights are loaded by
    `init_weights`, so they are not needed when a detector checkpoint is loaded instead. Parameters are named
    `timm_model.*`, followed by timm's `features_only` names (`layers_0.blocks.0...`).

    Args:
        model_name: timm model name, with or without a weights tag: `swin_tiny_patch4_window7_224.ms_in1k`.
        out_indices: timm indices of the levels to return, in ascending order; negative indices count from the end.
        out_strides: Strides of the levels to return; if several levels share a stride, the last one is used. The
            default without `out_indices` is (8, 16, 32).
        pretrained: Whether to load the weights that timm downloads for `model_name`.
        checkpoint: Path of a local `.pth` or `.safetensors` file, with the parameter names of the full timm model
            (the classifier is ignored) or of this backbone.
        remap_checkpoint: Whether to match the tensors of `checkpoint` by order instead of by name (like timm's
            `load_checkpoint(remap=True)`), for files with different names for the same tensors.
        in_channels: Number of image channels. The first convolution of loaded weights is adapted as in timm.
        drop_path_rate: Stochastic depth rate of the deepest block; None keeps timm's default.
        frozen_stages: Number of stages to freeze and keep in eval mode, together with the stem; 0 freezes only the
            stem, -1 nothing. Stages are the groups of timm's coarse `group_matcher`.
        norm_eval: Whether to keep batch norms in eval mode during training, which freezes their statistics.
        norm_cfg: `dict(requires_grad=False)` freezes the parameters of batch norms.
        with_cp: Whether to save memory by recomputing activations in the backward pass.
        options: Additional keywords for `timm.create_model`, such as `dict(output_stride=16)`.
        init_cfg: As in mmengine; mutually exclusive with `pretrained` and `checkpoint`.

    Attributes:
        out_channels, out_strides: Channels and stride of each returned level.
        pad_divisor: Images are padded to multiples of this number; 1 for most convolutional models.
        pretrained_colours: RGB mean and standard deviation (0 to 255) expected by timm's weights for this model.

    Raises:
        ConfigError: timm is not installed, the model is unknown, lacks a requested level, keyword or stage, or
            supports only one image size.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] | None = None,
        out_strides: Sequence[int] | None = None,
        pretrained: bool = False,
        checkpoint: str | None = None,
        remap_checkpoint: bool = False,
        in_channels: int = 3,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        options: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        _check_model_name(model_name)
        if bool(pretrained) + bool(checkpoint) + bool(init_cfg) > 1:
            raise ConfigError(
                'TimmBackbone takes one of pretrained, checkpoint and init_cfg: remove the others.'
            )
        if out_indices is not None and out_strides is not None:
            raise ConfigError('TimmBackbone takes out_indices or out_strides: remove one of them.')
        for key in (options or {}).keys() & RESERVED.keys():
            raise ConfigError(f'model.backbone.options.{key}: use model.backbone.{RESERVED[key]} instead.')
        self.model_name = model_name
        self.pretrained = pretrained
        self.checkpoint = checkpoint
        self.remap_checkpoint = remap_checkpoint
        self.in_channels = in_channels
        self.norm_eval = norm_eval
        # timm ignores keywords that are None
        self._keywords = {**(options or {}), 'in_chans': in_channels, 'drop_path_rate': drop_path_rate}
        full = _on_meta(self._create)  # full model without storage, for its class, names and shapes
        known = inspect.signature(type(full).__init__).parameters
        # options that enable arbitrary image sizes; `strict_img_size` is the older name of `dynamic_img_size`
        wanted = {'dynamic_img_size': True, 'dynamic_img_pad': True}
        wanted = wanted if 'dynamic_img_size' in known else {**wanted, 'strict_img_size': False}
        dynamic = {k: v for k, v in wanted.items() if k in known and k not in self._keywords}
        self._keywords |= dynamic
        probe = _on_meta(lambda: self._create(features_only=True))
        self.out_indices = _choose_levels(model_name, probe.feature_info.info, out_indices, out_strides)
        self.timm_model = self._create(features_only=True, out_indices=self.out_indices)
        self.out_channels: list[int] = self.timm_model.feature_info.channels()
        self.out_strides: list[int] = self.timm_model.feature_info.reduction()
        # windows make the sizes of all layers long expressions; torch.export was stopped after 8 minutes over them
        self.needs_fixed_size_to_trace = any(hasattr(m, 'window_size') for m in self.timm_model.modules())
        self.channels_last = _is_channels_last(model_name, self.timm_model)
        self.pretrained_colours = tuple(
            tuple(255 * v for v in full.pretrained_cfg[k]) for k in ('mean', 'std')
        )
        self.pad_divisor = 1
        if 'img_size' not in self._keywords:
            self.pad_divisor = self._find_pad_divisor(probe, {} if dynamic else full.pretrained_cfg)
        if with_cp:
            self._enable_checkpointing()
        self._frozen = self._freeze_stages(full, frozen_stages)
        self._freeze_norms(norm_cfg or {})
        if pretrained or checkpoint:
            # mmengine and ddetr read `init_cfg` to tell whether a backbone is pretrained
            self.init_cfg = {'type': 'Pretrained', 'checkpoint': checkpoint or f'timm://{model_name}'}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C_in, H, W) -> one map (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) for each of `out_indices`."""
        height, width = images.shape[-2:]
        right, below = -width % self.pad_divisor, -height % self.pad_divisor
        feats = self.timm_model(F.pad(images, (0, right, 0, below)) if right or below else images)
        if self.channels_last:
            feats = [feat.permute(0, 3, 1, 2).contiguous() for feat in feats]
        if not right and not below:
            return tuple(feats)
        # crop cells that contain only padding, so that the grid sizes match those of other backbones
        return tuple(
            feat[..., : -(-height // stride), : -(-width // stride)]
            for feat, stride in zip(feats, self.out_strides, strict=True)
        )

    def train(self, mode: bool = True) -> 'TimmBackbone':
        """Set training mode, except for frozen stages and batch norms with fixed statistics (`norm_eval`)."""
        super().train(mode)
        for name, module in self.timm_model.named_modules() if mode else ():
            if name in self._frozen or (self.norm_eval and isinstance(module, _BatchNorm)):
                module.eval()
        return self

    def init_weights(self) -> None:
        """Load all weights from `pretrained` or `checkpoint`; otherwise apply `init_cfg`, if any."""
        if self.pretrained or self.checkpoint:
            source = self.checkpoint or f'timm://{self.model_name}'
            if self.checkpoint:
                full, own = _on_meta(self._create), self.timm_model.state_dict()
                remap = self.remap_checkpoint
                state = read_timm_weights(source, self.model_name, full, own, self.in_channels, remap)
            else:
                state = self._download()
            self.timm_model.load_state_dict(state)
            print_log(f'TimmBackbone {self.model_name}: {len(state)} tensors from {source}', logger='current')
            if hasattr(self, '_params_init_info'):
                update_init_info(self, init_info=f'Loaded from {source}')
        elif self.init_cfg:
            super().init_weights()
        self._is_init = True

    def layer_groups(self) -> list[list[str]]:
        """Parameter names grouped by depth: the stem, then each block (timm's `group_matcher`).

        Raises:
            ConfigError: timm has no grouping for this model.
        """
        groups = self._groups(_on_meta(self._create), coarse=False)
        return [[f'timm_model.{name}' for name in names] for names in groups]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that timm excludes from weight decay, such as position biases."""
        full = _on_meta(self._create)
        names = full.no_weight_decay() if hasattr(full, 'no_weight_decay') else ()
        renamed = feature_names(full, self.timm_model.state_dict())
        return {f'timm_model.{renamed[name]}' for name in names if name in renamed}

    def _create(self, features_only: bool = False, **more: Any) -> Any:
        """Call `timm.create_model`. Raise ConfigError for unknown keywords and models without feature levels."""
        import timm

        own = {k: v for k, v in self._keywords.items() if features_only or k not in FEATURE_OPTIONS}
        try:
            return timm.create_model(self.model_name, features_only=features_only or None, **own, **more)
        except (RuntimeError, AssertionError, AttributeError, KeyError, TypeError) as error:
            if 'unexpected keyword argument' in str(error):
                key = str(error).split("'")[-2]
                raise ConfigError(
                    f"timm's {self.model_name} does not accept {key!r}: remove it from model.backbone."
                ) from error
            if not features_only:
                raise
            raise ConfigError(
                f'model.backbone.model_name={self.model_name!r}: timm does not support feature extraction '
                f'(features_only) for this model ({first_line(error)}). Choose another model.'
            ) from error

    def _find_pad_divisor(self, probe: Any, cfg: Mapping[str, Any]) -> int:
        """Smallest divisor of image sizes that the model accepts and for which its levels cover all pixels.

        timm does not document it, so the model is run: Swin raises an error unless sizes are multiples of 4, ConvNeXt
        drops the last rows and columns. `probe` has no storage and accepts any size because indices are not checked.
        If `cfg` declares a fixed input size (some models accept others anyway), only the real model is run.
        """
        strides = [level['reduction'] for level in probe.feature_info.info]
        fixed = max(cfg['input_size'][1:]) if cfg.get('fixed_input_size') else 0
        for model in (self.timm_model,) if fixed else (probe, self.timm_model):
            for divisor in sorted({1, min(strides), max(strides)}):
                if self._covers_images(model, divisor, max(3 * max(strides), fixed)):
                    return divisor
        raise ConfigError(
            f'model.backbone.model_name={self.model_name!r}: this timm model supports only a fixed image size. '
            'Choose another model, or set model.backbone.options.img_size and pad all images to it.'
        )

    @torch.no_grad()
    def _covers_images(self, model: Any, divisor: int, smallest: int) -> bool:
        """Whether all levels cover an odd-sized image after padding to multiples of `divisor`."""
        height, width = (-(-size // divisor) * divisor for size in (smallest + 5, smallest + 53))
        device, training = next(model.parameters()).device, model.training
        try:
            with device:
                feats = model.eval()(torch.zeros(1, self.in_channels, height, width))
        except Exception:  # models raise various exceptions for unsupported sizes
            return False
        finally:
            model.train(training)
        grids = [tuple(feat.shape[1:3] if self.channels_last else feat.shape[2:]) for feat in feats]
        return grids == [(-(-height // s), -(-width // s)) for s in model.feature_info.reduction()]

    def _enable_checkpointing(self) -> None:
        model: Any = self.timm_model
        model = model if hasattr(model, 'set_grad_checkpointing') else getattr(model, 'model', None)
        if not hasattr(model, 'set_grad_checkpointing'):
            raise ConfigError(
                f'model.backbone.with_cp=True: timm does not support gradient checkpointing for {self.model_name}.'
            )
        model.set_grad_checkpointing(True)

    def _groups(self, full: Any, coarse: bool) -> list[list[str]]:
        """Parameter names of `timm_model`, stem first, grouped by stage (coarse) or by block."""
        from timm.models import group_parameters

        renamed = feature_names(full, self.timm_model.state_dict())
        own = {name for name, _ in self.timm_model.named_parameters()}
        if not hasattr(full, 'group_matcher') or own - {*renamed.values()}:
            raise ConfigError(
                f'timm defines no layer groups (group_matcher) for {self.model_name}: frozen_stages and layer-wise '
                'learning rates are not available for this model.'
            )
        by_layer = group_parameters(full, full.group_matcher(coarse=coarse))
        groups = [[renamed[n] for n in by_layer[i] if renamed.get(n) in own] for i in sorted(by_layer)]
        return [group for group in groups if group]

    def _freeze_stages(self, full: Any, frozen_stages: int) -> set[str]:
        """Freeze the stem and stages. Return the names of modules that stay in eval mode."""
        if frozen_stages < 0:
            return set()
        groups = self._groups(full, coarse=True)
        if frozen_stages >= len(groups):
            raise ConfigError(
                f'model.backbone.frozen_stages={frozen_stages}: {self.model_name} has {len(groups) - 1} stages.'
            )
        frozen = {name for group in groups[: frozen_stages + 1] for name in group}
        for name in frozen:
            self.timm_model.get_parameter(name).requires_grad_(False)
        contents = {name: list(module.parameters()) for name, module in self.timm_model.named_modules()}
        return {name for name, own in contents.items() if own and not any(p.requires_grad for p in own)}

    def _freeze_norms(self, norm_cfg: Mapping[str, Any]) -> None:
        if norm_cfg.keys() - {'type', 'requires_grad'} or norm_cfg.get('type', 'BN') not in ('BN', 'SyncBN'):
            raise ConfigError(
                f"model.backbone.norm_cfg={dict(norm_cfg)}: TimmBackbone keeps the model's norms and accepts only "
                'dict(requires_grad=...).'
            )
        if norm_cfg.get('requires_grad', True):
            return
        norms = [module for module in self.timm_model.modules() if isinstance(module, _BatchNorm)]
        if not norms:
            raise ConfigError(
                f'model.backbone.norm_cfg.requires_grad=False applies to batch norms, but {self.model_name} has '
                'none: remove norm_cfg.'
            )
        for norm in norms:
            norm.requires_grad_(False)

    def _download(self) -> State:
        import timm

        keywords = {**self._keywords, 'out_indices': self.out_indices, 'features_only': True}
        try:
            return timm.create_model(self.model_name, pretrained=True, **keywords).state_dict()
        except Exception as error:  # hub clients raise many unrelated exception types
            raise CheckpointError(
                f'timm cannot load pretrained weights for {self.model_name} ({first_line(error)[:200]}). Offline, set '
                'model.backbone.checkpoint=FILE and pretrained=False.'
            ) from error


def _check_model_name(name: str) -> None:
    """Raise ConfigError unless timm has the model and, if the name has a tag, weights with that tag."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError('TimmBackbone needs timm: pip install timm') from error
    arch, _, tag = name.partition('.')
    if not timm.is_model(arch):
        hint = did_you_mean(arch, timm.list_models(), "; timm.list_models('*convnext*') lists names.")
        raise ConfigError(f'model.backbone.model_name={name!r}: timm has no such model{hint}')
    tags = [n.partition('.')[2] for n in timm.list_models(f'{arch}.*', pretrained=True)]
    if tag and tag not in tags:
        raise ConfigError(
            f'model.backbone.model_name={name!r}: timm has no weights with tag {tag!r} for {arch}. Available tags: '
            f'{", ".join(tags) or "none"}.'
        )


def _on_meta(create: Callable[[], Any]) -> Any:
    """Create a model without storage if its constructor supports the meta device."""
    try:
        with torch.device('meta'):
            return create()
    except (NotImplementedError, RuntimeError):
        return create()


def _choose_levels(
    name: str, levels: Sequence[Any], out_indices: Sequence[int] | None, out_strides: Sequence[int] | None
) -> tuple[int, ...]:
    """Indices of the requested levels in timm's `feature_info`; raise ConfigError if one is missing."""
    if out_indices is not None:
        wanted = [i + len(levels) if i < 0 else i for i in out_indices]
        lacking = [i for i, j in zip(out_indices, wanted, strict=True) if not 0 <= j < len(levels)]
        asked = f'out_indices={tuple(out_indices)}'
    else:
        by_stride = {level['reduction']: i for i, level in enumerate(levels)}  # the last of a stride wins
        strides = DEFAULT_STRIDES if out_strides is None else tuple(out_strides)
        lacking = [stride for stride in strides if stride not in by_stride]
        wanted = [by_stride.get(stride, -1) for stride in strides]
        asked = f'out_strides={strides}' + ('' if out_strides is not None else ' (the default)')
    there = ', '.join(
        f'{i}: stride {level["reduction"]} ({level["num_chs"]} channels)' for i, level in enumerate(levels)
    )
    if lacking:
        raise ConfigError(
            f'model.backbone.{asked}: {name} has no level {lacking[0]}. Its levels are {there}.'
        )
    if not wanted or sorted(set(wanted)) != wanted:
        raise ConfigError(
            f'model.backbone.{asked}: list each level once, finest first. The levels are {there}.'
        )
    return tuple(wanted)


def _is_channels_last(name: str, model: Any) -> bool:
    """Whether feature maps have layout (B, H, W, C); raise ConfigError for token sequences."""
    layout = getattr(model, 'output_fmt', 'NCHW')  # a string or timm's enum
    layout = getattr(layout, 'value', layout)
    if layout not in ('NCHW', 'NHWC'):
        raise ConfigError(f"timm's {name} returns {layout} features, not maps: choose another model.")
    return layout == 'NHWC'
