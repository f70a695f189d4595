"""Checks that datasets, detector and checkpoint agree on class names and numbers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from ddetr.analysis.examples import Example
from ddetr.engine.class_check import check_classes
from ddetr.utils.errors import ConfigError, InputError
from ddetr.weights import read_weights

from .contents import Array
from .findings import Finding, Measured, Severity, Unchecked
from .subject import Subject, model_batch, start_model

MANY_MATCHES = 20  # matched detections needed to judge confusions
LONG_SIDE_PX = 512


def check_names(subject: Subject) -> Measured:
    """Check that detector, datasets and labels agree on the classes."""
    names, number = subject.classes, getattr(subject.model, 'num_classes', None)
    facts = [f'{len(names)} classes in the training data: {_listed(names)}; the detector has {number}']
    datasets = {'train_dataloader': subject.train, 'val_dataloader': subject.val}
    try:
        check_classes(
            subject.model, {key: dataset for key, dataset in datasets.items() if dataset is not None}
        )
    except ConfigError as error:
        title = 'the class mapping is wrong: detector, training data and validation data do not agree'
        return Measured(tuple(facts), (Finding('classes', title, _evidence(error), _cure(error)),))
    labels = np.concatenate([example.labels for example in subject.examples])
    counts = Counter(labels.tolist())
    if number is not None and (strange := [label for label in counts if not 0 <= label < number]):
        evidence = f'labels {sorted(strange)[:5]} occur; the detector has classes 0 to {number - 1}'
        cure = 'number the labels from 0 in the dataset or transform that makes them.'
        title = 'the class mapping is wrong: labels are outside the classes of the detector'
        return Measured(tuple(facts), (Finding('classes', title, evidence, cure),))
    facts.append(
        'boxes by class: ' + ', '.join(f'{subject.name_of(k)} {n}' for k, n in counts.most_common(8))
    )
    findings = [*_unused(subject, counts), *_of_checkpoint(subject)]
    return Measured(tuple(facts), tuple(findings))


def _evidence(error: InputError) -> str:
    return str(error).rsplit(': ', 1)[0]


def _cure(error: InputError) -> str:
    return str(error).rsplit(': ', 1)[-1]


def _unused(subject: Subject, counts: Counter) -> list[Finding]:
    unused = [label for label in range(len(subject.classes)) if label not in counts]
    looked = len(subject.examples)
    if not unused or looked < len(subject.train) or not counts:
        return []
    names = ', '.join(subject.name_of(label) for label in unused[:5])
    return [
        Finding(
            'classes',
            f'{len(unused)} of {len(subject.classes)} classes have no box in the training data',
            f'no box of {names} in {looked} images',
            'if they should have some, compare metainfo.classes with the names in the annotation file.',
            Severity.NOTE,
        )
    ]


def _of_checkpoint(subject: Subject) -> list[Finding]:
    """Check the class names of a checkpoint whose classifier rows are kept."""
    source = subject.checkpoint or subject.cfg.get('load_from')
    if subject.checkpoint:
        learned: Sequence[str] = read_weights(subject.checkpoint).classes or ()
    else:
        learned = (subject.load_report.classes if subject.load_report else None) or ()
    names = subject.classes
    moved = [(a, b) for a, b in zip(learned, names, strict=False) if a != b]
    if not moved or len(learned) != len(names):
        return []
    same_names = set(learned) == set(names)
    return [
        Finding(
            'classes',
            'the class mapping is wrong: the checkpoint numbers its classes differently'
            if same_names
            else 'the checkpoint was trained on other classes, whose rows are kept because their number is the same',
            f'{len(moved)} of {len(names)} rows of {source} stand for other names, first {moved[0][0]!r} where the '
            f'data have {moved[0][1]!r}',
            f'set metainfo=dict(classes={_listed(learned)}) in all datasets'
            + (
                '.'
                if same_names
                else ', if these are what the data show; otherwise this costs some of the training.'
            ),
            Severity.CAUSE if same_names else Severity.NOTE,
        )
    ]


def check_confusion(subject: Subject) -> Measured:
    """Check which classes a trained detector predicts for the boxes of each class."""
    source = subject.checkpoint or subject.cfg.get('load_from')
    if not source:
        raise Unchecked('needs trained weights: --checkpoint')
    model, report = start_model(subject.cfg, source)
    if report is None or report.reinitialised:
        raise Unchecked('the weights know other classes than the data')
    pairs = matched_labels(
        model.eval(), [example for example in subject.examples[::4] if len(example.labels)]
    )
    if len(pairs) < MANY_MATCHES:
        return Measured(
            (f'{len(pairs)} boxes found in {len(subject.examples[::4])} training images: too few to tell',)
        )
    classes = np.unique(pairs)
    table = np.array(
        [[((pairs[:, 0] == i) & (pairs[:, 1] == j)).sum() for j in classes] for i in classes]
    )  # (K, K)
    right = table.trace() / table.sum()
    rows, columns = linear_sum_assignment(-table)
    best = table[rows, columns].sum() / table.sum()
    fact = f'{len(pairs)} boxes found by {source}: {right:.0%} get the class of their label'
    if best < 0.6 or best - right < 0.3:
        return Measured((fact,))
    moved = [(i, j) for i, j in zip(rows, columns, strict=True) if i != j and table[i, j]]
    pairs_said = ', '.join(
        f'{subject.name_of(int(classes[i]))} as {subject.name_of(int(classes[j]))}' for i, j in moved[:4]
    )
    return Measured(
        (fact,),
        (
            Finding(
                'classes',
                'the class mapping is wrong: the trained weights number the classes differently than the data',
                f'{fact}, and {best:.0%} by exchanging classes ({pairs_said})',
                'give the datasets metainfo=dict(classes=...) in the order that the weights were trained with.',
            ),
        ),
    )


@torch.no_grad()
def matched_labels(model: Any, examples: Sequence[Example]) -> Array:
    """Return (M, 2) pairs (label, predicted class) of boxes that a detector finds, regardless of class."""
    pairs = []
    for example in examples:
        batch = model_batch(model, [example], LONG_SIDE_PX, training=False)
        (sample,) = model(**batch, mode='predict')
        found = sample.pred_instances
        truth = sample.to_original(sample.gt_instances.bboxes)
        if not len(found.bboxes) or not len(truth):
            continue
        iou = box_iou(truth, found.bboxes)  # (G, N)
        # the detection with the highest score on each box
        best = (iou.gt(0.5) * found.scores).max(1)
        labels = sample.gt_instances.labels
        pairs += [
            (int(labels[g]), int(found.labels[n])) for g, n in enumerate(best.indices) if best.values[g] > 0
        ]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def _listed(names: Sequence[str], limit: int = 6) -> str:
    more = ', ...' if len(names) > limit else ''
    return f'({", ".join(map(repr, names[:limit]))}{more})'
