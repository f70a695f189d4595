"""Checks by training: a learning-rate sweep on a few images, and the model's predictions on them afterwards."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.optim import build_optim_wrapper
from torch import Tensor
from torchvision.ops import box_iou

from ddetr.analysis.examples import Example

from .findings import Finding, Measured, Severity, Unchecked
from .subject import Subject, model_batch

IMAGES, BATCH = 4, 2
FACTORS = (1.0, 0.1, 0.01)  # multiples of the config's learning rate
LONG_SIDES_PX = (256, 192)  # of the images; the smaller one if steps are slow
SLOW_STEP_S = 1.5
LEAST_STEPS, MOST_STEPS = 10, 30  # per learning rate
WARM_UP = 3  # steps
LEARNS = 0.95  # loss ratio (last to first) below which the model has learned
WORSE = 1.25  # ratio to the loss at a lower learning rate
LARGE_UPDATE = 0.1  # relative change of a weight per step; 0.001 to 0.01 is typical
STUCK = 0.9  # loss ratio after all steps above which not even a few images are learned
FOUND = 0.3  # minimum recall on these images of a model that overfits them
SAME_BOX = 0.95  # IoU above which two predictions count as the same


class Run(NamedTuple):
    """A short training on a few images."""

    factor: float  # of the config's learning rate
    first: float  # loss before training
    last: float  # loss after training
    steps: int
    update: float  # median relative change of the weights in the first step at the full rate

    def __str__(self) -> str:
        return f'{self.first:.4g} to {self.last:.4g}'


class Trainer:
    """Train copies of the initial model, always on the same images.

    Args:
        subject: Training setup.
        seconds: Time budget for all runs together.
    """

    def __init__(self, subject: Subject, seconds: float) -> None:
        self.subject, self.model = subject, copy.deepcopy(subject.model)
        self.examples = [example for example in subject.examples if len(example.labels)][:IMAGES]
        if not self.examples:
            raise Unchecked('no image of the training set has a box')
        self.side = LONG_SIDES_PX[0]
        if self._step_seconds() > SLOW_STEP_S:
            self.side = LONG_SIDES_PX[1]
        self.steps = int(seconds / max(self._step_seconds(), 1e-3) / 5)
        self.steps = min(max(self.steps, LEAST_STEPS), MOST_STEPS)

    def run(self, factor: float, steps: int | None = None) -> Run:
        """Train from the start at a multiple of the config's learning rate."""
        self.model.load_state_dict(self.subject.start_state)
        optimizer = self._optimizer(factor)
        rates = [group['lr'] for group in optimizer.param_groups]
        first, done, update = self.loss(), 0, 0.0
        for done in range(1, (steps or self.steps) + 1):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group['lr'] = rate * min(1.0, done / WARM_UP)
            loss = self._forward(self._batches[done % len(self._batches)])
            if not math.isfinite(float(loss.detach())):
                return Run(factor, first, math.inf, done, update)
            before = self._weights() if done == WARM_UP else []
            optimizer.update_params(loss)
            update = _change(before, self._weights()) if before else update
        last = self.loss()
        return Run(factor, first, last if math.isfinite(last) else math.inf, done, update)

    def _weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters() if p.requires_grad and p.ndim > 1]

    @torch.no_grad()
    def loss(self) -> float:
        """Return the training loss of all images."""
        return sum(float(self._forward(batch)) for batch in self._batches) / len(self._batches)

    @property
    def _batches(self) -> list[Sequence[Example]]:
        return [self.examples[i : i + BATCH] for i in range(0, len(self.examples), BATCH)]

    def _forward(self, examples: Sequence[Example]) -> Tensor:
        self.model.train()
        torch.manual_seed(0)  # dropout and noise are the same in every step
        batch = model_batch(self.model, examples, self.side)
        return self.model.parse_losses(self.model(**batch, mode='loss'))[0]

    def _optimizer(self, factor: float) -> Any:
        config: Mapping[str, Any] = copy.deepcopy(dict(self.subject.cfg.optim_wrapper))
        config = {**config, 'type': 'OptimWrapper', 'accumulative_counts': 1}
        for key in ('dtype', 'loss_scale'):  # of mixed precision
            config.pop(key, None)
        optimizer = build_optim_wrapper(self.model, config)
        for group in optimizer.param_groups:
            group['lr'] *= factor * self._scale
        return optimizer

    @property
    def _scale(self) -> float:
        """Learning rate factor of `auto_scale_lr`, if the config enables it."""
        scaling = self.subject.cfg.get('auto_scale_lr') or {}
        if not scaling.get('enable') or not scaling.get('base_batch_size'):
            return 1.0
        return self.subject.cfg.train_dataloader.get('batch_size', 1) / scaling['base_batch_size']

    def _step_seconds(self) -> float:
        self._forward(self._batches[0])  # prepares kernels for these sizes
        start = time.perf_counter()
        self._forward(self._batches[0]).backward()
        self.model.zero_grad()
        return time.perf_counter() - start


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the relative change of the tensors, as median over tensors."""
    ratios = [
        float((new - old).norm() / old.norm().clamp(min=1e-6)) for old, new in zip(before, after, strict=True)
    ]
    return sorted(ratios)[len(ratios) // 2]


def _is_too_high(own: Run, lower: Sequence[Run]) -> bool:
    """Whether lower rates reach a clearly lower loss, or a similar one with much smaller updates."""
    best = min(run.last for run in lower)
    if best > LEARNS * own.first:
        return False
    return own.last > WORSE * best or (own.update > LARGE_UPDATE and own.last > 0.9 * best)


def check_training(subject: Subject, seconds: float = 60.0) -> Measured:
    """Check if the loss falls at the config's or a lower learning rate, and if a few images are overfitted."""
    trainer = Trainer(subject, seconds)
    base = max(group['lr'] for group in trainer._optimizer(1.0).param_groups)
    runs = [trainer.run(factor) for factor in FACTORS]
    own, *lower = runs
    fact = f'loss of {len(trainer.examples)} images in {trainer.steps} steps: ' + ', '.join(
        f'{run} at learning rate {base * run.factor:.3g}' for run in runs
    )
    if not math.isfinite(own.first):
        evidence = f'the loss of the first batch is {own.first}'
        cure = 'look for NaNs in images, boxes and weights.'
        return Measured(
            (fact,), (Finding('training', 'the loss is not finite before any step', evidence, cure),)
        )
    fact += f'; a step at {base:.3g} changes the weights by {own.update:.2g} of their size'
    if _is_too_high(own, lower):
        calm = [run for run in lower if run.update < LARGE_UPDATE / 2] or lower[-1:]
        return Measured((fact,), (_too_high(fact, base, min(calm, key=lambda run: run.last)),))
    best = min(runs, key=lambda run: run.last)
    longer = trainer.run(best.factor, 2 * trainer.steps)
    found = found_on(trainer)
    facts = (
        fact,
        f'after {longer.steps} steps at {base * best.factor:.3g} the loss is {longer.last:.4g}; {found}',
    )
    if longer.last > STUCK * longer.first and found.recall < FOUND:
        raised = trainer.run(100.0)
        if raised.last < STUCK * raised.first:
            return Measured(facts, (_too_low(f'{fact}; {raised} at {base * 100:.3g}', base),))
        return Measured(facts, (_stuck(facts[1]),))
    return Measured(facts, (_collapsed(str(found)),) if found.collapsed else ())


def _too_high(fact: str, base: float, best: Run) -> Finding:
    return Finding(
        'learning_rate',
        f'the learning rate is too high: {base:.3g} diverges or oscillates, {base * best.factor:.3g} learns',
        fact,
        f'set optim_wrapper.optimizer.lr={base * best.factor:.3g}; auto_scale_lr scales it by the batch size.',
    )


def _too_low(fact: str, base: float) -> Finding:
    title = f'the learning rate is too low: nothing is learned at {base:.3g}'
    return Finding('learning_rate', title, fact, f'raise optim_wrapper.optimizer.lr, up to {base * 100:.3g}.')


def _stuck(fact: str) -> Finding:
    return Finding(
        'training',
        'a few images cannot be overfitted at any learning rate',
        fact,
        'check the individual losses, the gradients of the detector, and the pictures of its input.',
    )


def _collapsed(fact: str) -> Finding:
    cure = 'train longer; if it persists, check the matching costs and the initial positions of the queries.'
    return Finding('queries', 'most predictions of an image are the same box', fact, cure, Severity.NOTE)


class Found(NamedTuple):
    """Class-agnostic predictions of a model on its training images."""

    recall: float  # fraction of boxes with a prediction of IoU >= 0.5
    iou: float  # mean of the best IoU of each box
    distinct: float  # fraction of predictions that differ from all better ones
    predictions: float  # per image

    @property
    def collapsed(self) -> bool:
        """Whether predictions do not depend on the query."""
        return self.predictions >= 5 and self.distinct < 0.1

    def __str__(self) -> str:
        return (
            f'predictions find {self.recall:.0%} of the boxes (best IoU {self.iou:.2f} on average), '
            f'{self.distinct:.0%} of {self.predictions:.0f} predictions an image are distinct boxes'
        )


@torch.no_grad()
def found_on(trainer: Trainer) -> Found:
    """Predict on the images of a trainer with its current model."""
    model: Any = trainer.model.eval()
    best, distinct, counts = [], 0, 0
    for example in trainer.examples:
        (sample,) = model(**model_batch(model, [example], trainer.side, training=False), mode='predict')
        boxes, truth = sample.pred_instances.bboxes, sample.to_original(sample.gt_instances.bboxes)
        counts += len(boxes)
        if len(boxes):
            best.append(box_iou(truth, boxes).amax(1))
            same = box_iou(boxes, boxes).tril(-1) > SAME_BOX
            distinct += int((~same.any(1)).sum())
        else:
            best.append(truth.new_zeros(len(truth)))
    overlaps = torch.cat(best)
    return Found(
        float((overlaps > 0.5).float().mean()),
        float(overlaps.mean()),
        distinct / max(counts, 1),
        counts / len(trainer.examples),
    )
