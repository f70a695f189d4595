"""Image files: finding them by name, and reading their sizes from the header without decoding."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = range(5, 9)  # values of the tag that swap width and height


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """Return the image files in a folder, sorted by path; none if the folder does not exist."""
    found = folder.rglob('*') if recursive else folder.glob('*')
    return sorted(path for path in found if is_image(path))


def is_image(path: Path) -> bool:
    """Whether a path has an image suffix and is not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')


def image_size(path: Path) -> tuple[int, int] | None:
    """Return width and height in pixels as loaded by `LoadImageFromFile`; None if the header cannot be read."""
    sizes = image_sizes(path)
    return sizes and sizes[0]


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return width and height with EXIF rotation applied, and without; None if the header cannot be read."""
    try:
        with Image.open(path) as image:
            stored, turned = image.size, image.size[::-1]
            if image.getexif().get(_ORIENTATION) not in _SIDEWAYS:
                return stored, stored
            # Pillow already applies the rotation to the size of TIFF images
            return (stored, turned) if image.format == 'TIFF' else (turned, stored)
    except Exception:  # Pillow raises many exception types on malformed files
        return None


def size_for_loading(path: Path, written: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size that `LoadImageFromFile` should expect.

    This is the size in the annotation file if it matches the image, with or without EXIF rotation, otherwise the
    image's own size; None if the header cannot be read.
    """
    sizes = image_sizes(path)
    return sizes and (written if written in sizes else sizes[0])


class ImageFinder:
    """Find images by name without suffix; each folder is listed only once."""

    def __init__(self) -> None:
        self._by_stem = cache(lambda folder: {path.stem: path for path in reversed(images_in(folder))})

    def __call__(self, folder: Path, stem: str, named: Iterable[str] = ()) -> Path:
        """Return the file with this stem or one of the names in the folder; `stem.jpg` if none exists."""
        below = Path(stem)  # list entries may have folders, like 'night/0001'
        if found := self._by_stem((folder / below).parent).get(below.name):
            return found
        paths = (folder / Path(name.replace('\\', '/')).name for name in named if name)
        return next((path for path in paths if path.is_file()), folder / f'{stem}.jpg')
