"""Checks of labels and boxes against image content."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from .contents import Array, separability, transfer
from .findings import Finding, Measured, Unchecked
from .subject import Subject, described

GAIN = 0.2  # gain in AUC by swapping classes above which they count as swapped
UNKNOWN = 0.55  # AUC below which classes are not recognised
SIGMAS = 4  # standard deviations of the gain that rule out chance, even for the best of many assignments
RIGHT = 0.7  # AUC at which a class is recognised


def check_contents(subject: Subject) -> Measured:
    """Check that boxes lie on objects and that labels depend on their contents."""
    boxes = subject.described
    if len(boxes.labels) == 0:
        raise Unchecked('no image of the training set has a box')
    count = len(boxes.labels)
    facts, findings = [], []
    features = np.concatenate([boxes.features, boxes.of_other_images])
    own = np.repeat([1, 0], count)
    placed = separability(features, own, np.tile(boxes.images, 2))
    if placed is not None:
        facts.append(f'boxes against the same boxes on other images: told apart with AUC {placed}')
        if placed.is_chance:
            findings.append(
                _of_other_images(f'told apart from the same boxes on other images with AUC {placed}')
            )
    for within, among in ((False, 'all boxes'), (True, 'the boxes of each image')):
        known = separability(boxes.features, boxes.labels, boxes.images, within)
        if known is None:
            facts.append(f'labels among {among}: too few boxes of two classes to tell')
            continue
        facts.append(f'labels among {among}: predicted from their contents with AUC {known}')
        if known.is_chance and not findings:
            findings.append(_shuffled(f'predicted from the contents of the boxes with AUC {known}', among))
    return Measured(tuple(facts), tuple(findings))


def _of_other_images(evidence: str) -> Finding:
    return Finding(
        'labels',
        'the boxes do not lie on what the images show: annotations and images are shuffled or shifted',
        evidence,
        'check which annotation belongs to which image (image ids, file names, order of lists), and transforms that '
        'change the image but not its boxes; look at the pictures.',
    )


def _shuffled(evidence: str, among: str) -> Finding:
    return Finding(
        'labels',
        f'the labels are shuffled among {among}: they do not depend on what is in the boxes',
        evidence,
        'check how labels are joined to boxes (order of lists, sorting, a transform that reorders only one of them); '
        'look at the pictures.',
    )


def check_mapping(subject: Subject) -> Measured:
    """Check that labels have the same meaning in training and validation data."""
    train = subject.described
    if subject.val is None or not (val := described(subject.val_examples)).labels.size:
        raise Unchecked('there is no validation data with boxes')
    classes, auc = transfer(train.features, train.labels, val.features, val.labels)
    if len(classes) < 2:
        raise Unchecked('training and validation data share fewer than two classes with enough boxes')
    same = float(auc.diagonal().mean())
    facts = (
        f'{len(classes)} classes learned from training boxes, recognised in validation boxes with AUC {same:.2f}',
    )
    known = [separability(part.features, part.labels, part.images) for part in (train, val)]
    alone = [part.auc for part in known if part is not None and not part.is_chance]
    if len(alone) < len(known):
        return Measured(facts)  # shuffled labels or too different data: nothing to compare
    counts = (val.labels[:, None] == classes).sum(0)
    if moved := _exchanged(auc, counts):
        return Measured(facts, (_exchange(subject, classes, auc, moved),))
    if same < UNKNOWN and len(classes) > 2:
        evidence = f'{facts[0]}; among each part alone with AUC {alone[0]:.2f} and {alone[1]:.2f}'
        title = 'the class mapping is wrong: training and validation data mean different classes by the same label'
        return Measured(facts, (Finding('classes', title, evidence, _CURE),))
    return Measured(facts)


_CURE = (
    'give both annotation files the same categories (names, ids, order), and both datasets the same '
    'metainfo=dict(classes=...).'
)


def _exchanged(auc: Array, counts: Array) -> list[tuple[int, int]]:
    """Return pairs (i, j) where training class i is validation class j: complete cycles of the best assignment.

    Args:
        auc: Areas under the ROC curve (K, K) from `transfer`.
        counts: Number of boxes (K,) per class in the validation data; the areas are uncertain if it is small.
    """
    columns = linear_sum_assignment(-auc)[1]
    moved: list[tuple[int, int]] = []
    left = set(range(len(columns)))
    while left:
        cycle = [left.pop()]
        while (following := int(columns[cycle[-1]])) in left:
            left.remove(following)
            cycle.append(following)
        there = auc[cycle, columns[cycle]]
        gain = there - auc[cycle, cycle]
        doubt = np.sqrt((1 / (6 * counts[cycle])).mean() / len(cycle))  # standard deviation of the mean gain
        if len(cycle) > 1 and there.mean() > RIGHT and gain.mean() > max(GAIN, SIGMAS * doubt):
            moved += [(i, int(columns[i])) for i in cycle]
    return moved


def _exchange(subject: Subject, classes: Array, auc: Array, moved: list[tuple[int, int]]) -> Finding:
    pairs = [
        f"the training's {subject.name_of(int(classes[i]))} looks like the validation's "
        f'{subject.name_of(int(classes[j]))} (AUC {auc[i, j]:.2f}; {auc[i, i]:.2f} for its own name)'
        for i, j in moved[:4]
    ]
    return Finding(
        'classes',
        'the class mapping is wrong: training and validation data mean different classes by the same label',
        '; '.join(pairs),
        _CURE,
    )
