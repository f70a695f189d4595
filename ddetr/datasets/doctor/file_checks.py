"""Checks of files: unreadable annotations, and missing, damaged or mismatched images."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from ddetr.datasets.formats.records import WrittenImage, WrittenSplit
from ddetr.datasets.formats.yolo import label_file

from .checks import check
from .evidence import Evidence, file_names, where
from .faults import Example, Picture
from .image_facts import ImageFacts

SUFFIXES = {
    'JPEG': {'.jpg', '.jpeg', '.jpe', '.jfif'}, 'MPO': {'.jpg', '.jpeg', '.mpo'}, 'PNG': {'.png'},
    'BMP': {'.bmp', '.dib'}, 'WEBP': {'.webp'}, 'TIFF': {'.tif', '.tiff'}, 'GIF': {'.gif'},
}  # fmt: skip
IMAGES = frozenset().union(*SUFFIXES.values())
SMALL_PX = 32  # `min_size` of MMDetection's filter_cfg, which skips smaller images
MODES = {'L': 'grey', 'LA': 'grey with transparency', 'RGBA': 'with transparency', 'CMYK': 'CMYK', 'P': 'a palette',
         'PA': 'a palette with transparency', '1': 'black and white'}  # fmt: skip
LABEL_SUFFIX = {'voc': '.xml', 'yolo': '.txt'}
OTHER_TEXTS = {
    'classes.txt',
    'notes.json',
    'labels.txt',
    'obj.names',
    'README.txt',
    'data.yaml',
}  # beside labels


@check(
    'unreadable annotation', 'error',
    consequence='Training fails when it reads the file, or continues without these objects.',
    cure='Correct or remove the file or record.',
    fix='drops it',
)  # fmt: skip
def _unreadable_annotation(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        for sentence in split.unreadable:
            yield Example(sentence)


@check(
    'missing image', 'error',
    consequence='Training fails when it builds the dataset or reaches the image.',
    cure='Put the file in place, correct its name in the annotation file, or remove its entry.',
    fix='uses a file whose name differs only in case or suffix; else drops the entry',
)  # fmt: skip
def _missing(evidence: Evidence) -> Iterator[Example]:
    for split, image in evidence.images():
        if not evidence.exists(image.path):
            other = like_named(evidence, image.path)
            hint = f', but {other.name} does' if other else ''
            yield Example(f'{where(split, image)}: {image.path} does not exist{hint}', (Picture(image.path),))


def like_named(evidence: Evidence, path: Path) -> Path | None:
    """Find the file that a missing image's name may refer to: different case or suffix, or another machine's path."""
    name = path.name.split('\\')[-1]
    for folder in (path.parent, path.parent.joinpath(*path.name.split('\\')[:-1]), *evidence.folders):
        names = evidence.folders.get(folder) or file_names(folder)
        same = [other for other in names if other.casefold() == name.casefold()]
        stem = [n for n in names if Path(n).stem == Path(name).stem and Path(n).suffix.lower() in IMAGES]
        if same or stem:
            return folder / min(same or stem)
    return None


@check(
    'file name with backslashes or from another machine', 'warning',
    consequence='The image is not found on Linux, or only on the machine that wrote the file.',
    cure='Write paths relative to the image folder, with forward slashes.',
    fix='writes plain names',
)  # fmt: skip
def _foreign_name(evidence: Evidence) -> Iterator[Example]:
    for _, image in evidence.images():
        name = image.file_name
        if '\\' in name or PureWindowsPath(name).is_absolute() or PurePosixPath(name).is_absolute():
            yield Example(f'{image.where}: file name {name!r}', (Picture(image.path),))


def _with_problem(evidence: Evidence, problem: str) -> Iterator[Example]:
    for _, image, facts in evidence.opened():
        if facts.problem == problem:
            yield Example(f'{image.path}: {facts.detail}', (Picture(image.path),))


@check(
    'empty image file', 'error',
    consequence='Training fails when it reaches the image.',
    cure='Copy the file from its source again, or remove its entry.',
    fix='drops the image',
)  # fmt: skip
def _empty(evidence: Evidence) -> Iterator[Example]:
    return _with_problem(evidence, 'empty')


@check(
    'unreadable image', 'error',
    consequence='Training fails when it reaches the image.',
    cure='Copy the file from its source again, convert it to JPEG or PNG, or remove its entry.',
    fix='drops the image',
)  # fmt: skip
def _unreadable(evidence: Evidence) -> Iterator[Example]:
    return _with_problem(evidence, 'unreadable')


@check(
    'truncated image', 'error',
    consequence='Training fails when it reaches the image.',
    cure='Copy the file from its source again, or remove its entry.',
    fix='drops the image',
)  # fmt: skip
def _truncated(evidence: Evidence) -> Iterator[Example]:
    return _with_problem(evidence, 'truncated')


@check(
    'image size differs from the file', 'error',
    consequence='Boxes may not fit the picture. In COCO\'s format training fails when it reaches the image; in others '
    'it uses the size of the file.',
    cure='Write the width and height of the image file, and check that the boxes were drawn on this image.',
    fix='uses the size of the file: boxes are scaled where the shape is the same, kept where they fit; else the '
    'image is dropped',
)  # fmt: skip
def _other_size(evidence: Evidence) -> Iterator[Example]:
    for split, image, facts in evidence.opened():
        if image.size and facts.size and image.size not in (facts.size, facts.upright_size):
            boxes = tuple(box.corners for box in image.boxes)
            swapped = ', exchanged' if image.size == facts.size[::-1] else ''
            said, real = (f'{w} x {h}' for w, h in (image.size, facts.upright_size or facts.size))
            text = f'{where(split, image)} says {said}{swapped}, the file has {real} pixels'
            yield Example(text, (Picture(image.path, boxes),))


@check(
    'image without a size', 'error',
    consequence='In COCO\'s format training fails when it reads the annotation file; in others it uses the size '
    'of the file.',
    cure='Write the width and height of the image file in pixels.',
    fix='uses the size of the file',
)  # fmt: skip
def _no_size(evidence: Evidence) -> Iterator[Example]:
    for split, image in evidence.images():
        if split.format != 'yolo' and not good_size(image.size):
            yield Example(f'{where(split, image)} has size {image.size}', (Picture(image.path),))


def good_size(size: object) -> bool:
    """Whether a size is two positive numbers."""
    return isinstance(size, tuple) and all(isinstance(side, (int, float)) and side > 0 for side in size)


@check(
    'EXIF rotation', 'warning',
    consequence='Programs that ignore the camera\'s rotation show and load the image differently; boxes '
    'fit only one orientation. ddetr uses the one that matches the size in the annotations.',
    cure='Store the image upright, without the tag.',
    fix='stores the image in the orientation of the boxes, without the tag',
)  # fmt: skip
def _rotated(evidence: Evidence) -> Iterator[Example]:
    for _, image, facts in evidence.opened():
        if facts.orientation != 1:
            fits = _fit(image, facts)
            text = f'{image.path}: EXIF orientation {facts.orientation}; {fits}'
            yield Example(text, (Picture(image.path, tuple(box.corners for box in image.boxes)),))


def _fit(image: WrittenImage, facts: ImageFacts) -> str:
    if image.size is None:
        return 'the annotation file has no size, so the orientation of the boxes is unknown'
    if image.size == facts.upright_size:
        return 'the annotation file has the size after rotation'
    if image.size == facts.size:
        return 'the annotation file has the size before rotation'
    return 'the annotation file has a different size'


@check(
    'wrong file suffix', 'warning',
    consequence='ddetr detects the format from the content; programs that rely on the suffix fail.',
    cure='Rename the file, also in the annotations.',
    fix='renames the image',
)  # fmt: skip
def _wrong_suffix(evidence: Evidence) -> Iterator[Example]:
    for _, image, facts in evidence.opened():
        if image.path.suffix.lower() not in SUFFIXES.get(facts.format, {image.path.suffix.lower()}):
            yield Example(f'{image.path} is a {facts.format} file', (Picture(image.path),))


@check(
    'more than 8 bits per channel', 'warning',
    consequence='Only the upper 8 bits are loaded, so most 12-bit and medical images are nearly black.',
    cure='Convert the images to 8 bits with the contrast used for annotation.',
)  # fmt: skip
def _deep(evidence: Evidence) -> Iterator[Example]:
    for _, image, facts in evidence.opened():
        if facts.mode.startswith(('I', 'F')):
            yield Example(f'{image.path}: {facts.format} of mode {facts.mode}', (Picture(image.path),))


@check(
    'grey, transparent, palette or CMYK image', 'note',
    consequence='The image is loaded as three 8-bit colours; transparency is dropped, which can show what was hidden.',
    cure='None, if the pictures look right.',
)  # fmt: skip
def _other_mode(evidence: Evidence) -> Iterator[Example]:
    for _, image, facts in evidence.opened():
        if facts.mode in MODES and not facts.problem:
            yield Example(f'{image.path}: {MODES[facts.mode]}', (Picture(image.path),))


@check(
    'very small image', 'note',
    consequence=f'Configs with filter_cfg=dict(min_size={SMALL_PX}) skip it; enlarged, it shows little detail.',
    cure='Remove thumbnails and crops that were added by mistake.',
)  # fmt: skip
def _small_image(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        for index, image in enumerate(boxes.split.images):
            if boxes.sizes[index].min() < SMALL_PX:
                width, height = boxes.sizes[index]
                text = f'{where(boxes.split, image)}: {width:.0f} x {height:.0f} pixels'
                yield Example(text, (Picture(image.path),), -float(width * height))


@check(
    'image missing from the annotations', 'warning',
    consequence='The image is not used.',
    cure='Annotate it, or move it out of the image folder.',
    fix='drops it',
)  # fmt: skip
def _unlisted(evidence: Evidence) -> Iterator[Example]:
    listed = set(evidence.file_splits)
    for folder, names in sorted(evidence.folders.items()):
        for name in sorted(names):
            path = folder / name
            if path not in listed and path.suffix.lower() in IMAGES and not name.startswith('.'):
                yield Example(f'{path} is in no split', (Picture(path),))


@check(
    'label file without image', 'warning',
    consequence='Its objects are not used.',
    cure='Put the image in place or list it, or remove the label file.',
    fix='drops it',
)  # fmt: skip
def _orphan_label(evidence: Evidence) -> Iterator[Example]:
    used: dict[tuple[Path, str], set[str]] = {}
    for split, image in evidence.images():
        if suffix := LABEL_SUFFIX.get(split.format):
            names = used.setdefault((label_folder(split, image), suffix), set())
            names |= {image.path.stem, Path(image.where).stem}
    broken = ' '.join(sentence for split in evidence.splits for sentence in split.unreadable)
    for (folder, suffix), names in sorted(used.items()):
        for path in sorted(folder.glob(f'*{suffix}')):
            if path.stem not in names and path.name not in OTHER_TEXTS and path.name not in broken:
                yield Example(f'{path} belongs to no image of any split')


def label_folder(split: WrittenSplit, image: WrittenImage) -> Path:
    """Return the folder that contains the label file of an image."""
    if split.format == 'yolo':
        return label_file(image.path).parent
    beside = image.path.parent.parent / 'Annotations'
    return beside if beside.is_dir() else image.path.parent


@check(
    'annotation file not named like its image', 'note',
    consequence='ddetr uses the image named like the XML file; other readers use the name inside the file.',
    cure='Give the XML file and its image the same name.',
    fix='names both after the image',
)  # fmt: skip
def _named_unlike(evidence: Evidence) -> Iterator[Example]:
    for _, image in evidence.images():
        source = image.where.split(':')[0]
        if source.endswith('.xml') and Path(source).stem != Path(image.file_name.replace('\\', '/')).stem:
            yield Example(f'{source} is about {image.file_name!r}', (Picture(image.path),))
