"""Pascal VOC format: one XML file per image."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path

from ddetr.datasets.formats.headers import ImageFinder, is_image
from ddetr.datasets.formats.records import Category, WrittenBox, WrittenImage, WrittenSplit
from ddetr.utils.errors import InputError

# Exceptions of `ET.parse`; LookupError is raised for unknown encodings.
_UNREADABLE = (ET.ParseError, UnicodeDecodeError, OSError, LookupError, ValueError)
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read_voc_split(
    annotations: Path, images: Path, name: str, list_file: Path | None = None, relative_to: Path | None = None
) -> WrittenSplit:
    """Read a folder of XML files without rejecting faulty records.

    1 is subtracted from all four coordinates, as in MMDetection, since VOC counts pixels from 1. The width is then
    xmax - xmin. VOC's development kit includes the last pixel in the box; today's annotation tools do not.

    Args:
        annotations: Folder of the XML files.
        images: Folder of the images, which have the same names as the XML files.
        name: Name of the split.
        list_file: Text file with one name per line, without suffix, as in VOC's `ImageSets/Main`. None reads all XML
            files.
        relative_to: Folder that is omitted from paths in messages.

    Returns:
        The split. Unreadable XML files are described in `unreadable`. The categories are the names in `classes.txt` or
        CVAT's `labelmap.txt`, if there is one, followed by all other object names in the folder `annotations`, across
        all splits, in alphabetical order.

    Raises:
        InputError: A file or folder does not exist.
    """
    annotations, images = Path(annotations), Path(images)
    if not annotations.is_dir():
        raise InputError(f'folder of annotations {annotations} does not exist.')
    root = relative_to or annotations.parent
    everything = sorted(annotations.rglob('*.xml'))
    files = everything if list_file is None else _listed(Path(list_file), annotations)
    find = ImageFinder()
    unreadable: list[str] = []
    names: set[str] = set()
    read = []
    for path in files:
        where = _relative(path, root)
        try:
            root_element = ET.parse(path).getroot()
            image = _image(root_element, path, annotations, images, where, find, unreadable)
        except FileNotFoundError:
            unreadable.append(
                f'{_relative(Path(list_file or ""), root)} lists {path.stem}, but there is no {where}.'
            )
        except _UNREADABLE as error:
            unreadable.append(f'{where} is not valid XML (truncated?): {error}.')
        else:
            read.append(image)
            names |= _names(root_element)
    for path in sorted(set(everything) - set(files)):
        with suppress(*_UNREADABLE):
            names |= _names(ET.parse(path).getroot())
    listed = _class_list((root, annotations.parent, annotations))
    ordered = [*listed, *sorted(names - {*listed})]
    categories = tuple(Category(None, class_name) for class_name in ordered)
    return WrittenSplit(
        name, 'voc', Path(list_file or annotations), categories, tuple(read), tuple(unreadable)
    )


def _listed(list_file: Path, annotations: Path) -> list[Path]:
    """Return the XML files in a list; lines may have an image suffix, or the 1 or -1 of VOC's per-class lists."""
    if not list_file.is_file():
        raise InputError(
            f'list of images {list_file} {"is a folder" if list_file.is_dir() else "does not exist"}.'
        )
    found = []
    for line in list_file.read_text(encoding='utf-8-sig').splitlines():
        if not (text := line.strip()):
            continue
        stem, _, flag = text.rpartition(' ')
        if stem and flag in ('-1', '0', '1') and not (annotations / f'{text}.xml').exists():
            if flag == '-1':
                continue
            text = stem.strip()
        text = str(Path(text).with_suffix('')) if is_image(Path(text)) else text
        found.append(annotations / f'{text}.xml')
    return found


def _image(
    root: ET.Element,
    path: Path,
    annotations: Path,
    images: Path,
    where: str,
    find: ImageFinder,
    unreadable: list[str],
) -> WrittenImage:
    stem = path.relative_to(annotations).with_suffix('').as_posix()
    file_name = _text(root, 'filename') or ''
    boxes = []
    for number, element in enumerate(root.iter('object'), start=1):
        if element.find('bndbox') is None:
            unreadable.append(f'{where}: object {number} has no bndbox.')
        else:
            boxes.append(_box(element, number))
    return WrittenImage(
        file_name=file_name or stem,
        path=find(images, stem, (file_name, _text(root, 'path') or '')),
        size=_size(root),
        boxes=tuple(boxes),
        where=where,
        id=stem,
    )


def _box(element: ET.Element, number: int) -> WrittenBox:
    written = tuple(_text(element, f'bndbox/{corner}') for corner in CORNERS)
    x1, y1, x2, y2 = (float(_number(text) - 1) for text in written)
    return WrittenBox(
        category=_class_name(element),
        corners=(x1, y1, x2, y2),
        written=written,
        where=f'object {number}',
        difficult=_text(element, 'difficult') in ('1', 'true', 'True'),
    )


def _class_name(element: ET.Element) -> str | None:
    """Return the class name without the line breaks and indentation of a pretty-printed file."""
    name = element.findtext('name') or ''
    return (name.strip() if '\n' in name else name) or None


def _number(text: str | None) -> Decimal:
    """Parse a number exactly; NaN if it is not a number."""
    try:
        number = Decimal(text or 'nan')
    except InvalidOperation:
        return Decimal('nan')
    return number if math.isfinite(number) else Decimal('nan')


def _size(root: ET.Element) -> tuple[int, int] | None:
    width, height = (_number(_text(root, f'size/{side}')) for side in ('width', 'height'))
    return None if width.is_nan() or height.is_nan() else (int(width), int(height))


def _text(element: ET.Element, key: str) -> str | None:
    text = element.findtext(key)
    return text.strip() if text else None


def _class_list(folders: Iterable[Path]) -> list[str]:
    """Return the class names in the first class list found, in its order; none without one."""
    files = [folder / name for folder in folders for name in ('classes.txt', 'labelmap.txt')]
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        return []
    names = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    if path.name == 'labelmap.txt':  # name:color:parts:actions, with a class for the rest of the image
        names = [name.split(':')[0] for name in names if not name.startswith(('#', 'background:'))]
    return list(dict.fromkeys(name for name in names if name))


def _names(root: ET.Element) -> set[str]:
    """Return the class names of the objects in a file."""
    return {name for element in root.iter('object') if (name := _class_name(element))}


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
