"""Checks of the list of classes, in each split and between splits."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from .checks import check
from .evidence import Evidence
from .faults import Example

IMBALANCE = 10  # ratio to the most frequent class
NAMED = 8  # maximum number of names listed in an example


def plain(name: str) -> str:
    """Normalise a name: ignore letter case, spaces, hyphens and underscores."""
    return ' '.join(name.casefold().replace('_', ' ').replace('-', ' ').split())


def names_of(evidence: Evidence) -> Counter[str]:
    """Return the number of boxes per class name in the whole dataset, including zeros."""
    counts: Counter[str] = Counter()
    for boxes in evidence.boxes:
        counts.update(boxes.counts())
    return counts


@check(
    'duplicate category name', 'error',
    consequence='Classes are ambiguous by name, so ddetr rejects the file.',
    cure='Merge them, or give them distinct names.',
    fix='merges them',
)  # fmt: skip
def _one_name(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        names = Counter(category.name for category in split.categories)
        for name, n in names.items():
            if n > 1:
                ids = [category.id for category in split.categories if category.name == name]
                yield Example(f'{split.source}: {n} categories are named {name!r}, ids {listing(ids)}')


@check(
    'duplicate category id', 'error',
    consequence='The class of the boxes is ambiguous, so ddetr rejects the file.',
    cure='Give every category a unique id, and correct the annotations.',
)  # fmt: skip
def _one_id(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        ids = Counter(repr(category.id) for category in split.categories if category.id is not None)
        for value, n in ids.items():
            if n > 1:
                names = [category.name for category in split.categories if repr(category.id) == value]
                yield Example(f'{split.source}: id {value} is shared by {listing(names)}')


@check(
    'no categories', 'error',
    consequence='There is no class to train on.',
    cure='Add the list of classes to the annotation file.',
)  # fmt: skip
def _no_categories(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        if not split.categories:
            yield Example(f'{split.source}')


@check(
    'inconsistent spelling of a class name', 'warning',
    consequence='The detector learns each spelling as a separate class, and confusions between them count as errors.',
    cure='Use one spelling everywhere.',
    fix='uses the spelling that most boxes have',
)  # fmt: skip
def _variants(evidence: Evidence) -> Iterator[Example]:
    counts = names_of(evidence)
    for names in variants(counts):
        yield Example(', '.join(f'{name!r} ({counts[name]} boxes)' for name in names))


def variants(counts: Counter[str]) -> list[list[str]]:
    """Groups of spellings of the same name, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for name, _ in counts.most_common():
        groups.setdefault(plain(name), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


@check(
    'empty class name or surrounding spaces', 'warning',
    consequence='It will not match the name in configs, tables and other files.',
    cure='Remove the spaces; give every class a name.',
    fix='removes the spaces',
)  # fmt: skip
def _blank_names(evidence: Evidence) -> Iterator[Example]:
    for name, n in names_of(evidence).items():
        if not name.strip() or name != name.strip():
            yield Example(f'{name!r} ({n} boxes)')


@check(
    'class numbering differs between splits', 'error',
    consequence='A label means different classes in training and evaluation.',
    cure='Write the same categories, ids and order in all files.',
    fix='writes one list for all splits',
)  # fmt: skip
def _different_lists(evidence: Evidence) -> Iterator[Example]:
    first = next((split for split in evidence.splits if split.categories), None)
    for split in evidence.splits:
        if first is None or split is first or not split.categories or split.format == 'voc':
            continue
        ours, theirs = ({c.name: c.id for c in each.categories} for each in (first, split))
        differing = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        lacking = sorted(ours.keys() ^ theirs.keys())
        if differing:
            name = differing[0]
            numbers = f'{ours[name]!r} in {first.name} and {theirs[name]!r} in {split.name}'
            yield Example(f'{len(differing)} classes, the first is {name!r}: id {numbers}')
        if lacking:
            yield Example(f'only one of {first.name} and {split.name} lists {listing(lacking)}')


@check(
    'unused category', 'note',
    consequence='The detector has an output that is never trained, and the class has no AP.',
    cure='Remove it from the list if it is not meant to be there (Roboflow exports the project\'s name as category 0).',
)  # fmt: skip
def _unused(evidence: Evidence) -> Iterator[Example]:
    for name, n in names_of(evidence).items():
        if n == 0:
            yield Example(f'{name!r} has no box in any split')


@check(
    'class in one split only', 'warning',
    consequence='A class without training boxes cannot be learnt; one without test boxes is not evaluated.',
    cure='Split the images again, so that each split has boxes of every class.',
)  # fmt: skip
def _one_split(evidence: Evidence) -> Iterator[Example]:
    filled = [boxes for boxes in evidence.boxes if len(boxes.flat)]
    if len(filled) < 2:
        return
    counts = {boxes.split.name: boxes.counts() for boxes in filled}
    for name, total in names_of(evidence).items():
        having = [split for split, count in counts.items() if count.get(name, 0)]
        if len(having) == 1:
            yield Example(f'{name!r}: all {total} boxes are in {having[0]}', weight=total)


@check(
    'class imbalance', 'note',
    consequence=f'A class with {IMBALANCE} times fewer boxes than another is detected less reliably.',
    cure='Collect more examples, or repeat its images: dict(type="ClassBalancedDataset", oversample_thr=...).',
)  # fmt: skip
def _imbalance(evidence: Evidence) -> Iterator[Example]:
    counts = Counter({name: n for name, n in names_of(evidence).items() if n})
    for most, n in counts.most_common(1):
        for name, few in counts.items():
            if few * IMBALANCE <= n:
                yield Example(f'{name!r} has {few} boxes, {most!r} has {n}', weight=-few)


@check(
    'category ids from 0 or with gaps', 'note',
    consequence='ddetr numbers classes in the order of their ids; tools that use ids as labels get wrong labels.',
    cure='Not needed for ddetr. For other tools, number the categories from 1 without gaps.',
    fix='numbers categories from 1',
)  # fmt: skip
def _odd_ids(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        ids = sorted(c.id for c in split.categories if isinstance(c.id, int) and split.format == 'coco')
        gaps = sum(after - before > 1 for before, after in pairwise(ids))
        if ids and (ids[0] != 1 or gaps):
            yield Example(f'{split.source}: ids {ids[0]} to {ids[-1]}, {gaps} gaps')


def listing(values: list) -> str:
    """List the first few values for a message."""
    more = f' and {len(values) - NAMED} more' if len(values) > NAMED else ''
    return ', '.join(map(repr, values[:NAMED])) + more
