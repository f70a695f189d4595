"""Checks of the initial weights."""

from typing import Any

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .findings import Finding, Measured, Severity
from .subject import Subject, start_model

MISSING = 0.05  # fraction of missing tensors above which a partial load is reported
RANDOM = 0.5  # fraction of random weights above which a component counts as random
SLOW = 0.5  # fraction of the optimizer's learning rate below which a component trains slowly


def check_weights(subject: Subject) -> Measured:
    """Check which components start from loaded weights and which from random ones."""
    model, report = subject.model, subject.load_report
    drawn = random_weights(subject)
    parts = {name: _weights(part, name) for name, part in model.named_children()}
    total = sum(map(len, parts.values()))
    share = {name: sum(key in drawn for key in keys) / len(keys) for name, keys in parts.items() if keys}
    started = [f'{name} {"random" if part > RANDOM else "loaded"}' for name, part in share.items()]
    facts = [f'{len(drawn)} of {total} weight tensors start at random: {", ".join(started)}']
    findings = []
    if report is not None:
        facts.append(
            f'load_from={report.path}: {report.mapped} tensors loaded, {len(report.missing)} missing'
        )
        if len(report.missing) > MISSING * len(model.state_dict()):
            findings.append(_missing(subject))
    if not findings:
        findings += _frozen_random(subject, drawn)
    if not findings:
        findings += _asked_but_random(subject, drawn)
    if not findings and share.get('backbone', 0.0) > RANDOM:
        findings += [_slow_random(subject, drawn) or _random_backbone()]
    return Measured(tuple(facts), tuple(findings))


def random_weights(subject: Subject) -> set[str]:
    """Return the names of randomly initialised weights: those that change with the seed."""
    other, _ = start_model(subject.cfg, subject.cfg.get('load_from'), seed=1)
    theirs: dict[str, Tensor] = other.state_dict()
    own = subject.model.state_dict()
    names = _weights(subject.model)
    return {name for name in names if not torch.equal(own[name], theirs[name])}


def _weights(module: nn.Module, prefix: str = '') -> list[str]:
    """Return the names of convolution and linear weights; biases and norms start as constants."""
    names = [name for name, parameter in module.named_parameters() if parameter.ndim > 1]
    return [f'{prefix}.{name}' if prefix else name for name in names]


def _missing(subject: Subject) -> Finding:
    report: Any = subject.load_report
    return Finding(
        'weights',
        'the pretrained weights are not loaded: most of the model keeps its random values'
        if report.mapped < len(report.missing)
        else 'the pretrained weights are loaded in part only',
        f'{len(report.missing)} tensors of the model are missing in {report.path}, such as {report.missing[0]}; '
        f'{len(report.unexpected)} of the file are left over',
        'take a checkpoint of this model (tools/converters/identify.py says what a file holds), without allow_partial.',
    )


def _frozen_random(subject: Subject, drawn: set[str]) -> list[Finding]:
    """Find random weights that are frozen, and batch norms whose statistics never adapt to random weights."""
    model = subject.model
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad and name in drawn]
    model.train()
    norms: dict[str, Any] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training
    }
    random_parts = {name.split('.')[0] for name in drawn}
    idle = [
        name
        for name, norm in norms.items()
        if name.split('.')[0] in random_parts
        and not norm.running_mean.any()
        and (norm.running_var == 1).all()
    ]
    if not frozen and not idle:
        return []
    what = []
    if frozen:
        what.append(f'{len(frozen)} weight tensors are random and get no gradient, such as {frozen[0]}')
    if idle:
        what.append(
            f'{len(idle)} batch norms keep the statistics of a network that was never trained (mean 0, variance 1), '
            f'such as {idle[0]}'
        )
    part = (frozen or idle)[0].split('.')[0]
    return [
        Finding(
            'weights',
            f'the pretrained weights are not loaded: the {part} is random, and frozen in part',
            '; '.join(what),
            f'{_CURE}; to train from random weights, set frozen_stages=-1, norm_eval=False and '
            'norm_cfg.requires_grad=True there.',
        )
    ]


def _asked_but_random(subject: Subject, drawn: set[str]) -> list[Finding]:
    """Find modules with `init_cfg=dict(type='Pretrained')` whose weights are random anyway."""
    for name, module in subject.model.named_modules():
        config: Any = getattr(module, 'init_cfg', None) or []
        configs = [config] if isinstance(config, dict) else config
        sources = [c['checkpoint'] for c in configs if c.get('type') == 'Pretrained']
        own = _weights(module, name)
        if sources and own and sum(key in drawn for key in own) > RANDOM * len(own):
            title = f'the pretrained weights are not loaded: {name or "the model"} is random'
            evidence = f'its init_cfg names {sources[0]}, but its weights depend on the seed'
            cure = "let the detector's init_weights() reach this module: it must be a mmengine BaseModule."
            return [Finding('weights', title, evidence, cure)]
    return []


def _slow_random(subject: Subject, drawn: set[str]) -> Finding | None:
    """Find a random backbone with the low learning rate meant for a pretrained one."""
    model = subject.model
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = build_optim_wrapper(model, subject.cfg.optim_wrapper).optimizer
    base = optimizer.defaults['lr']
    rates = {
        names[id(p)]: group['lr']
        for group in optimizer.param_groups
        for p in group['params']
        if id(p) in names
    }
    own = [rates[name] for name in drawn if name.startswith('backbone.') and name in rates]
    if not own or max(own) > SLOW * base:
        return None
    return Finding(
        'weights',
        'the pretrained weights are not loaded: the backbone is random, and trains slowly',
        f"its learning rate is {max(own):g}, {max(own) / base:g} of the optimizer's, as for a pretrained backbone; "
        'its weights depend on the seed',
        f'{_CURE}; to train from random weights, remove the lr_mult of the backbone.',
    )


_CURE = (
    "name them in the config: model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...), the backbone's own "
    'option (TimmBackbone: pretrained or checkpoint), or load_from of a whole detector'
)


def _random_backbone() -> Finding:
    return Finding(
        'weights',
        'the backbone starts from random weights',
        'its weights depend on the seed, and all of it is trained',
        f'with a few thousand images or fewer, pretrained weights give much better detectors: {_CURE}.',
        Severity.NOTE,
    )
