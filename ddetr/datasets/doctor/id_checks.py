"""Checks of the ids in COCO annotation files."""

from collections import Counter
from collections.abc import Iterable, Iterator

from ddetr.datasets.formats.records import WrittenSplit

from .checks import check
from .evidence import Evidence, id_key, where
from .faults import Example, Picture

NAMED = 5  # maximum number of ids in an example


def _repeated(values: Iterable[object]) -> dict[object, int]:
    return {value: n for value, n in Counter(values).items() if n > 1 and value is not None}


@check(
    'duplicate image id', 'error',
    consequence='Boxes may be assigned to the wrong image, so ddetr rejects the file.',
    cure='Give each image a unique id, and update its annotations.',
    fix='renumbers images; boxes stay with the image that the reader assigned them to',
)  # fmt: skip
def _image_ids(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        repeated = _repeated(id_key(image.id) for image in split.images)
        for image in split.images:
            if (key := id_key(image.id)) in repeated:
                text = f'{where(split, image)}: id {image.id!r} is shared by {repeated[key]} images'
                yield Example(text, (Picture(image.path),))


def _restarted(split: WrittenSplit) -> bool:
    """Whether annotation ids repeat because the numbering restarts in every image."""
    starts = [id_key(image.boxes[0].id) for image in split.images if image.boxes]
    return len(starts) > 1 and Counter(starts).most_common(1)[0][1] > len(starts) / 2


def _annotation_ids(evidence: Evidence, restarted: bool) -> Iterator[Example]:
    for boxes in evidence.boxes:
        repeated = _repeated(id_key(box.id) for box in boxes.flat)
        if repeated and _restarted(boxes.split) == restarted:
            for index, box in enumerate(boxes.flat):
                if (key := id_key(box.id)) in repeated:
                    yield boxes.example(index, f', annotation id {box.id!r} occurs {repeated[key]} times')


@check(
    'duplicate annotation id', 'error',
    consequence='Tools that look up annotations by id, such as pycocotools, silently lose boxes.',
    cure='Renumber the annotations.',
    fix='renumbers annotations',
)  # fmt: skip
def _duplicate_annotation_ids(evidence: Evidence) -> Iterator[Example]:
    return _annotation_ids(evidence, restarted=False)


@check(
    'annotation ids restart in each image', 'error',
    consequence='Tools that look annotations up by id, pycocotools among them, keep the boxes of the last image only; '
    'ddetr rejects the file.',
    cure='Number the annotations consecutively through the whole file.',
    fix='renumbers annotations',
)  # fmt: skip
def _restarted_annotation_ids(evidence: Evidence) -> Iterator[Example]:
    return _annotation_ids(evidence, restarted=True)


@check(
    'unknown image id',
    'error',
    consequence='These boxes belong to no listed image; ddetr rejects the file.',
    cure='Add the images to the list, or remove the annotations.',
    fix='drops them',
)
def _unknown_image(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        for sentence in split.lost:
            yield Example(sentence)


@check(
    'id stored as text', 'warning',
    consequence='1 and "1" are different ids: records do not match, and evaluation tools expect numbers.',
    cure='Write ids as numbers.',
    fix='renumbers everything',
)  # fmt: skip
def _text_ids(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        if split.format != 'coco':
            continue
        kinds = {
            'image ids': (image.id for image in split.images),
            'annotation ids': (box.id for image in split.images for box in image.boxes),
            'category ids': (category.id for category in split.categories),
            "annotations' category ids": (box.category for image in split.images for box in image.boxes),
        }
        for kind, values in kinds.items():
            texts = [value for value in values if isinstance(value, str)]
            if texts:
                some = ', '.join(map(repr, list(dict.fromkeys(texts))[:NAMED]))
                yield Example(f'{split.source}: {len(texts)} {kind}, such as {some}')


@check(
    'unknown category', 'error',
    consequence='The class of these boxes is unknown, so training fails when it reads the annotation file.',
    cure='Add the category to the file, or correct the id.',
    fix='uses the category whose id differs only in type (number or text); else drops the boxes',
)  # fmt: skip
def _unknown_category(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        known = {str(c.key) for c in boxes.split.categories}
        for index in (boxes.category < 0).nonzero()[0]:
            written = boxes.flat[index].category
            hint = ', which exists as text or number' if str(written) in known else ''
            yield boxes.example(int(index), f', category {written!r} is not in the list{hint}')
