"""Any model of timm (PyTorch Image Models, Wightman, 2019) as a backbone, over timm's `features_only`.

timm is an optional dependency: this module imports it when a `TimmBackbone` is built.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ddetr.registry import MODELS
from ddetr.utils.errors import CheckpointError, ConfigError

DEFAULT_STRIDES = (8, 16, 32)
# timm's keywords that are `TimmBackbone`'s own ones, and those that would load files around the safe reader
RESERVED = {
    'model_name': 'model_name',
    'features_only': 'out_indices or out_strides',
    'out_indices': 'out_indices',
    'pretrained': 'pretrained',
    'in_chans': 'in_channels',
    'drop_path_rate': 'drop_path_rate',
    'checkpoint_path': 'checkpoint',
    'pretrained_cfg': 'checkpoint',
    'pretrained_cfg_overlay': 'checkpoint',
}
FEATURE_OPTIONS = ('feature_cls', 'feature_location')  # timm takes them with `features_only` alone


class Level(NamedTuple):
    """One feature level that a timm model has."""

    number: int  # timm's index
    stride: int  # pixels of the image per feature cell
    channels: int


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """Feature levels of a timm model.

    Channels and strides are read from the model: a neck without `in_channels` takes `out_channels`. Images of any size
    are taken; those that the model does not divide evenly are padded on the right and below with zeros. Pretrained
    weights are loaded by `init_weights`, so that a detector whose own checkpoint follows does not need them.

    The parameters are named `timm_model.*`, followed by timm's names for `features_only` (`layers_0.blocks.0...`).

    Args:
        model_name: Name in timm, with or without a weights tag: `swin_tiny_patch4_window7_224.ms_in1k`.
        out_indices: Levels to return, by timm's index (negative: from the end), in ascending order.
        out_strides: Levels to return, by their stride; of several levels of one stride, the last. Without
            `out_indices` and `out_strides` the levels of strides 8, 16 and 32.
        pretrained: Load the weights that timm downloads for `model_name`.
        checkpoint: Path of a local `.pth` or `.safetensors` file with the weights, under the names of timm's whole
            model (a classifier is left out) or of this backbone.
        remap_checkpoint: Match the tensors of `checkpoint` by their order instead of their names (as timm's
            `load_checkpoint(remap=True)`), for files that name the same tensors differently.
        in_channels: Channels of the image. The first convolution of loaded weights is adapted as timm does.
        drop_path_rate: Stochastic depth rate of the deepest block; None keeps timm's default.
        frozen_stages: Number of stages that get no gradient and stay in eval mode, with the stem; 0 is the stem alone,
            -1 freezes nothing. Stages are timm's coarse `group_matcher` groups.
        norm_eval: Keep batch norms in eval mode while training, so that their statistics stay.
        norm_cfg: `dict(requires_grad=False)` excludes the parameters of batch norms from training. Their type is the
            model's.
        with_cp: Save memory by recomputing activations in the backward pass.
        options: More keywords for `timm.create_model`, such as `dict(output_stride=16)`.
        init_cfg: As in mmengine, where neither `pretrained` nor `checkpoint` is given.

    Attributes:
        out_channels: Channels of each returned level.
        out_strides: Stride of each returned level.
        pad_divisor: Multiple to which images are padded; 1 for most convolutional models.

    Raises:
        ConfigError: timm is missing or has no such model, or the model lacks a level, keyword or stage, or takes images
            of one size only.
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
        self.model_name = model_name
        self.pretrained = pretrained
        self.checkpoint = checkpoint
        self.remap_checkpoint = remap_checkpoint
        self.in_channels = in_channels
        self.norm_eval = norm_eval
        self._keywords = _keywords(model_name, in_channels, drop_path_rate, options or {})
        full = self._full_model()
        dynamic = _any_image_size(full, self._keywords)
        self._keywords |= dynamic
        probe = _on_meta(self._create_features)
        levels = _levels(probe)
        chosen = _choose_levels(model_name, levels, out_indices, out_strides)
        self.out_indices = tuple(level.number for level in chosen)
        self.out_channels = [level.channels for level in chosen]
        self.out_strides = [level.stride for level in chosen]
        self.timm_model = self._create_features(out_indices=self.out_indices)
        self.channels_last = _is_channels_last(model_name, self.timm_model)
        self.pad_divisor = 1
        if 'img_size' not in self._keywords:
            self.pad_divisor = self._find_pad_divisor(probe, 0 if dynamic else _fixed_size(full))
        if with_cp:
            self._enable_checkpointing()
        self._frozen = self._freeze_stages(full, frozen_stages)
        self._freeze_norms(norm_cfg)
        if pretrained or checkpoint:
            # what mmengine's and our own code ask to know whether a backbone starts from trained weights
            self.init_cfg = {'type': 'Pretrained', 'checkpoint': checkpoint or f'timm://{model_name}'}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C_in, H, W) -> one (B, C_i, ceil(H / stride_i), ceil(W / stride_i)) for each of `out_indices`."""
        height, width = images.shape[-2:]
        right, below = -width % self.pad_divisor, -height % self.pad_divisor
        feats = self.timm_model(F.pad(images, (0, right, 0, below)) if right or below else images)
        if self.channels_last:
            feats = [feat.permute(0, 3, 1, 2).contiguous() for feat in feats]
        if not right and not below:
            return tuple(feats)
        # without the cells that hold padding only, so that a cell is as far from the border as in any other backbone
        return tuple(
            feat[..., : -(-height // stride), : -(-width // stride)]
            for feat, stride in zip(feats, self.out_strides, strict=True)
        )

    def train(self, mode: bool = True) -> 'TimmBackbone':
        """Switch to training, but for frozen stages and norms that keep their statistics (`norm_eval`)."""
        super().train(mode)
        if mode:
            for name in self._frozen:
                self.timm_model.get_submodule(name).eval()
            for module in self.timm_model.modules() if self.norm_eval else ():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Load the weights that `pretrained` or `checkpoint` names; otherwise apply `init_cfg`, if any.

        Raises:
            CheckpointError: The weights cannot be downloaded or read, or do not fit the model.
        """
        if not self.pretrained and not self.checkpoint:
            if self.init_cfg:
                super().init_weights()
            self._is_init = True
            return
        source = self.checkpoint or f'timm://{self.model_name}'
        state = self._read_weights(self.checkpoint) if self.checkpoint else self._download()
        self.timm_model.load_state_dict(state)
        self._is_init = True
        print_log(f'TimmBackbone {self.model_name}: {len(state)} tensors from {source}', logger='current')
        if hasattr(self, '_params_init_info'):
            update_init_info(self, init_info=f'Loaded from {source}')

    def layer_groups(self) -> list[list[str]]:
        """Names of this module's parameters by depth: the stem, then each block (timm's `group_matcher`).

        Raises:
            ConfigError: timm has no grouping for this model.
        """
        groups = self._groups(self._full_model(), coarse=False)
        return [[f'timm_model.{name}' for name in names] for names in groups]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm trains without weight decay, such as position biases."""
        full: Any = self._full_model()
        names = full.no_weight_decay() if hasattr(full, 'no_weight_decay') else ()
        renamed = _feature_names(full, self.timm_model.state_dict())
        return {f'timm_model.{renamed[name]}' for name in names if name in renamed}

    def _full_model(self) -> nn.Module:
        """The whole timm model without storage: its class, names and shapes."""
        keywords = {key: value for key, value in self._keywords.items() if key not in FEATURE_OPTIONS}
        return _on_meta(lambda: _create(self.model_name, keywords))

    def _create_features(self, **more: Any) -> nn.Module:
        try:
            return _create(self.model_name, {**self._keywords, **more, 'features_only': True})
        except (RuntimeError, AssertionError, AttributeError, KeyError, TypeError) as error:
            raise ConfigError(
                f'model.backbone.model_name={self.model_name!r}: timm gives no feature levels (features_only) for '
                f'it ({_first_line(error)}). Choose another model.'
            ) from error

    def _find_pad_divisor(self, probe: nn.Module, fixed_size: int) -> int:
        """The least padding with which a model takes images of any size and covers all of their pixels.

        Found by running the model, because timm does not say it: Swin raises an error at other sizes than multiples of
        4, ConvNeXt rounds down at each stage and drops the last rows and columns.

        Args:
            probe: The model without storage. That checks no index, so it does not tell of models of one size.
            fixed_size: Image size that timm says the model is bound to, or 0.
        """
        strides = [level.stride for level in _levels(probe)]
        smallest = max(3 * max(strides), fixed_size)
        for model in (self.timm_model,) if fixed_size else (probe, self.timm_model):
            for divisor in sorted({1, min(strides), max(strides)}):
                if _covers_images(model, divisor, smallest, self.in_channels, self.channels_last):
                    return divisor
        raise ConfigError(
            f'model.backbone.model_name={self.model_name!r}: this model of timm does not take images of any size. '
            'Choose another one, or set model.backbone.options.img_size and pad all images to it.'
        )

    def _enable_checkpointing(self) -> None:
        model: Any = self.timm_model
        model = model if hasattr(model, 'set_grad_checkpointing') else getattr(model, 'model', None)
        if not hasattr(model, 'set_grad_checkpointing'):
            raise ConfigError(
                f'model.backbone.with_cp=True: timm cannot recompute activations of {self.model_name}.'
            )
        model.set_grad_checkpointing(True)

    def _groups(self, full: nn.Module, coarse: bool) -> list[list[str]]:
        """Parameter names of `timm_model`, from the stem on: by stage (coarse) or by block."""
        from timm.models import group_parameters

        matcher: Any = getattr(full, 'group_matcher', None)
        if matcher is None:
            raise ConfigError(
                f'timm does not say which layers {self.model_name} has (group_matcher): frozen_stages and '
                'layer-wise learning rates are not available for it.'
            )
        renamed = _feature_names(full, self.timm_model.state_dict())
        own = {name for name, _ in self.timm_model.named_parameters()}
        if lost := own - set(renamed.values()):
            raise ConfigError(
                f'{self.model_name}: {len(lost)} parameters of its features have no counterpart in the whole model, '
                f'such as {min(lost)}: frozen_stages and layer-wise learning rates are not available for it.'
            )
        by_layer = group_parameters(full, matcher(coarse=coarse))
        groups = [[renamed[n] for n in by_layer[i] if n in renamed] for i in sorted(by_layer)]
        return [[name for name in group if name in own] for group in groups if set(group) & own]

    def _freeze_stages(self, full: nn.Module, frozen_stages: int) -> tuple[str, ...]:
        """Exclude the stem and stages from training; names of the modules that stay in eval mode."""
        if frozen_stages < 0:
            return ()
        stem, *stages = self._groups(full, coarse=True)
        if frozen_stages > len(stages):
            raise ConfigError(
                f'model.backbone.frozen_stages={frozen_stages}: {self.model_name} has {len(stages)} stages.'
            )
        frozen = {*stem, *(name for stage in stages[:frozen_stages] for name in stage)}
        for name, parameter in self.timm_model.named_parameters():
            if name in frozen:
                parameter.requires_grad_(False)
        return tuple(_frozen_modules(self.timm_model, frozen))

    def _freeze_norms(self, norm_cfg: Mapping[str, Any] | None) -> None:
        norm_cfg = norm_cfg or {}
        if norm_cfg.keys() - {'type', 'requires_grad'} or norm_cfg.get('type', 'BN') not in ('BN', 'SyncBN'):
            raise ConfigError(
                f'model.backbone.norm_cfg={dict(norm_cfg)}: TimmBackbone keeps the norms of the model and takes '
                'dict(requires_grad=...) alone.'
            )
        norms = [m for m in self.timm_model.modules() if isinstance(m, _BatchNorm)]
        if norm_cfg.get('requires_grad', True):
            return
        if not norms:
            raise ConfigError(
                f'model.backbone.norm_cfg.requires_grad=False is about batch norms, and {self.model_name} has '
                'none: remove norm_cfg.'
            )
        for norm in norms:
            norm.requires_grad_(False)

    def _download(self) -> dict[str, Tensor]:
        try:
            loaded = _create(
                self.model_name,
                {
                    **self._keywords,
                    'out_indices': self.out_indices,
                    'features_only': True,
                    'pretrained': True,
                },
            )
        except Exception as error:  # the hub's clients raise errors of many unrelated types
            raise CheckpointError(
                f'timm cannot load pretrained weights of {self.model_name} ({_first_line(error)[:200]}). Without a '
                'network, give model.backbone.checkpoint=FILE and pretrained=False.'
            ) from error
        return dict(loaded.state_dict())

    def _read_weights(self, path: str) -> dict[str, Tensor]:
        """Read `checkpoint` for `timm_model`; see `_fit` for what fits."""
        full, own = self._full_model(), self.timm_model.state_dict()
        state = _tensors(path)
        for prefix in ('backbone.', 'timm_model.'):  # a detector's or this backbone's own checkpoint
            part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            state = part or state
        if self.remap_checkpoint:
            state = _by_order(path, state, full)
        fitted, faults = _fit(state, full, own, self.in_channels)
        if not faults:
            return fitted
        filter_fn = _filter_fn(full)
        if filter_fn is not None:
            try:
                filtered = filter_fn(dict(state), full)
            except (
                Exception
            ):  # timm's filters look up names without asking; the plain names are reported then
                filtered = state
            fitted, more_faults = _fit(filtered, full, own, self.in_channels)
            faults = min(faults, more_faults, key=len)
        if not faults:
            return fitted
        raise CheckpointError(
            f"checkpoint {path} does not fit timm's {self.model_name}: {faults[0]} and {len(faults) - 1} more. Give "
            'weights of this model, or remap_checkpoint=True if the same tensors only have other names.'
        )


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError('TimmBackbone needs timm: pip install timm') from error
    return timm


def _check_model_name(name: str) -> None:
    """Raise ConfigError unless timm has the model, and weights of the tag in its name."""
    timm = _import_timm()
    arch, _, tag = name.partition('.')
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else "timm.list_models('*convnext*') lists names."
        raise ConfigError(f'model.backbone.model_name={name!r}: timm has no such model; {hint}')
    tags = [n.partition('.')[2] for n in timm.list_models(f'{arch}.*', pretrained=True)]
    if tag and tag not in tags:
        raise ConfigError(
            f'model.backbone.model_name={name!r}: timm has no weights of tag {tag!r} for {arch}, only of '
            f'{", ".join(tags) or "none"}.'
        )


def _keywords(name: str, in_channels: int, drop_path_rate: float | None, options: Mapping) -> dict[str, Any]:
    """Keywords of `timm.create_model` for the backbone."""
    for key in options.keys() & RESERVED.keys():
        raise ConfigError(f'model.backbone.options.{key}: use model.backbone.{RESERVED[key]} instead.')
    keywords = {**options, 'in_chans': in_channels}
    if drop_path_rate is not None:
        keywords['drop_path_rate'] = drop_path_rate
    return keywords


def _create(name: str, keywords: Mapping[str, Any]) -> nn.Module:
    """`timm.create_model`; raise ConfigError for a keyword that the model does not take."""
    try:
        return _import_timm().create_model(name, **keywords)
    except TypeError as error:
        if 'unexpected keyword argument' not in str(error):
            raise
        key = str(error).split("'")[-2]
        raise ConfigError(f"timm's {name} takes no {key!r}: remove it from model.backbone.") from error


def _on_meta(create: Callable[[], nn.Module]) -> nn.Module:
    """Create a model without storage where its constructor can do so."""
    try:
        with torch.device('meta'):
            return create()
    except (NotImplementedError, RuntimeError):
        return create()


def _any_image_size(full: nn.Module, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords that let a model take images of any size, if it needs any."""
    known = inspect.signature(type(full).__init__).parameters
    wanted = {'dynamic_img_size': True, 'dynamic_img_pad': True, 'strict_img_size': False}
    if 'dynamic_img_size' in known:
        del wanted['strict_img_size']  # the older name of the same
    return {key: value for key, value in wanted.items() if key in known and key not in keywords}


def _fixed_size(full: Any) -> int:
    """The image size that timm says a model is bound to, or 0. Some take other sizes all the same."""
    cfg: Mapping[str, Any] = getattr(full, 'pretrained_cfg', {})
    return max(cfg['input_size'][1:]) if cfg.get('fixed_input_size') else 0


@torch.no_grad()
def _covers_images(model: Any, divisor: int, smallest: int, channels: int, channels_last: bool) -> bool:
    """Whether all levels have a cell for each pixel of an odd-sized image that is padded to multiples of `divisor`."""
    height, width = (-(-size // divisor) * divisor for size in (smallest + 5, smallest + 53))
    device, training = next(model.parameters()).device, model.training
    try:
        with device:
            feats = model.eval()(torch.zeros(1, channels, height, width))
    except Exception:  # whatever a model raises at a size that it does not take
        return False
    finally:
        model.train(training)
    grids = [tuple(feat.shape[1:3] if channels_last else feat.shape[2:]) for feat in feats]
    return grids == [(-(-height // s), -(-width // s)) for s in model.feature_info.reduction()]


def _levels(model: Any) -> list[Level]:
    """All levels that a `features_only` model could return."""
    return [Level(i, info['reduction'], info['num_chs']) for i, info in enumerate(model.feature_info.info)]


def _choose_levels(
    name: str, levels: list[Level], out_indices: Sequence[int] | None, out_strides: Sequence[int] | None
) -> list[Level]:
    """The asked levels; raise ConfigError with all that there are if one is missing."""
    there = ', '.join(
        f'{level.number}: stride {level.stride} ({level.channels} channels)' for level in levels
    )
    if out_indices is not None:
        wanted = [i + len(levels) if i < 0 else i for i in out_indices]
        lacking = [i for i, j in zip(out_indices, wanted, strict=True) if not 0 <= j < len(levels)]
        asked = f'out_indices={tuple(out_indices)}'
    else:
        by_stride = {level.stride: level.number for level in levels}  # the last level of a stride wins
        strides = DEFAULT_STRIDES if out_strides is None else tuple(out_strides)
        lacking = [stride for stride in strides if stride not in by_stride]
        wanted = [by_stride.get(stride, -1) for stride in strides]
        asked = f'out_strides={strides}' + ('' if out_strides is not None else ' (the default)')
    if lacking:
        raise ConfigError(
            f'model.backbone.{asked}: {name} has no level {lacking[0]}; its levels are {there}.'
        )
    if not wanted or sorted(set(wanted)) != wanted:
        raise ConfigError(
            f'model.backbone.{asked}: name each level once, finest first; the levels are {there}.'
        )
    return [levels[i] for i in wanted]


def _is_channels_last(name: str, model: Any) -> bool:
    """Whether levels come as (B, H, W, C); raise ConfigError for tokens without a grid."""
    layout = getattr(model, 'output_fmt', 'NCHW')  # a string or timm's enum
    layout = getattr(layout, 'value', layout)
    if layout not in ('NCHW', 'NHWC'):
        raise ConfigError(f"timm's {name} returns {layout} features, not maps: choose another model.")
    return layout == 'NHWC'


def _frozen_modules(model: nn.Module, frozen: set[str], prefix: str = '') -> list[str]:
    """Names of the outermost modules all of whose parameters are frozen."""
    found = []
    for name, child in model.named_children():
        path = f'{prefix}{name}'
        names = {f'{path}.{n}' for n, _ in child.named_parameters()}
        if names and names <= frozen:
            found.append(path)
        elif names & frozen:
            found += _frozen_modules(child, frozen, f'{path}.')
    return found


def _feature_names(full: nn.Module, own: Mapping[str, Any]) -> dict[str, str]:
    """Tensor names of the whole model -> those under `features_only`, for the tensors that both have.

    timm flattens the first level of `nn.Sequential` (`layers.0` becomes `layers_0`) or puts the model into a module.
    """
    found: dict[str, str] = {}
    for name in full.state_dict():
        first, _, rest = name.partition('.')
        candidates = [name, f'model.{name}', f'body.{name}']
        if isinstance(getattr(full, first, None), nn.Sequential):
            candidates.append(f'{first}_{rest}')
        found.update((name, candidate) for candidate in candidates if candidate in own)
    return found


def _tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a weight file, found where timm looks for them: averaged weights first."""
    from ddetr.engine import read_checkpoint  # late, since the engine imports models

    content = read_checkpoint(path)
    for key in ('state_dict_ema', 'model_ema', 'state_dict', 'model'):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise CheckpointError(f'checkpoint {path} holds no tensors by name: give a state dict.')
    for prefix in ('_orig_mod.', 'module.', '_orig_mod.'):  # torch.compile and DDP, in either order
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _fit(
    state: Mapping[str, Tensor], full: nn.Module, own: Mapping[str, Tensor], in_channels: int
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of `state` under the names of `own`, and what is missing, of another shape or left over.

    What only the whole model has is no fault: its classifier, and stages behind the last returned level.
    """
    renamed = _feature_names(full, own)
    known = full.state_dict().keys()
    cfg: Mapping[str, Any] = getattr(full, 'pretrained_cfg', {})
    classifiers = _as_tuple(cfg.get('classifier'))
    fitted, left_over = {}, []
    for name, value in state.items():
        if name in own or name in renamed:
            fitted[name if name in own else renamed[name]] = value
        elif name not in known and not name.startswith(tuple(f'{c}.' for c in classifiers)):
            left_over.append(name)
    for first in _as_tuple(cfg.get('first_conv')):
        key = renamed.get(f'{first}.weight', '')
        if key in fitted and fitted[key].ndim == 4 and fitted[key].shape[1] == 3 != in_channels:
            from timm.models import adapt_input_conv

            fitted[key] = adapt_input_conv(in_channels, fitted[key])
    faults = []
    for name, value in own.items():
        if name not in fitted and name.endswith('num_batches_tracked'):
            fitted[name] = torch.zeros_like(value)  # old files lack these counters
        elif name not in fitted:
            faults.append(f'{name} (missing)')
        elif fitted[name].shape != value.shape:
            faults.append(f'{name} (shape {tuple(fitted[name].shape)}, not {tuple(value.shape)})')
    return fitted, faults + [f'{name} (left over)' for name in left_over]


def _by_order(path: str, state: Mapping[str, Tensor], full: nn.Module) -> dict[str, Tensor]:
    """Give the tensors the names of the whole model, in whose order they must be."""
    own = full.state_dict()
    if len(state) != len(own):
        raise CheckpointError(
            f'checkpoint {path} cannot be remapped: it has {len(state)} tensors, the model {len(own)}.'
        )
    for (theirs, value), (name, mine) in zip(state.items(), own.items(), strict=True):
        same_kind = theirs.rpartition('.')[2] == name.rpartition('.')[2]
        if not same_kind or (value.shape != mine.shape and value.ndim != 4):
            raise CheckpointError(
                f'checkpoint {path} cannot be remapped: {theirs} {tuple(value.shape)} stands where the model has '
                f'{name} {tuple(mine.shape)}.'
            )
    return dict(zip(own, state.values(), strict=True))


def _filter_fn(full: nn.Module) -> Callable[[dict, nn.Module], dict] | None:
    """What timm does to older files of the model's family: they stand in the family's module."""
    module = inspect.getmodule(type(full))
    return getattr(module, 'checkpoint_filter_fn', None)


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split('\n')[0]
