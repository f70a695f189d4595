"""Image files: their names in a folder, and their sizes from the header, without decoding."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from PIL import Image

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = range(5, 9)  # its values that swap width and height


def images_in(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, sorted by path; none if there is no such folder."""
    found = folder.rglob('*') if recursive else folder.glob('*')
    return sorted(path for path in found if is_image(path))


def is_image(path: Path) -> bool:
    """Whether a name is an image's; hidden files are not."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith('.')


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height in pixels as `LoadImageFromFile` sees the image; None if the header cannot be read."""
    sizes = image_sizes(path)
    return sizes and sizes[0]


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Width and height with a camera's EXIF rotation applied, and without; None if the header cannot be read."""
    try:
        with Image.open(path) as image:
            stored, turned = image.size, image.size[::-1]
            if image.getexif().get(_ORIENTATION) not in _SIDEWAYS:
                return stored, stored
            # Pillow gives TIFF's size as it is after the rotation
            return (stored, turned) if image.format == 'TIFF' else (turned, stored)
    except Exception:  # Pillow raises many types on malformed files
        return None


def size_for_loading(path: Path, written: tuple[int, int] | None) -> tuple[int, int] | None:
    """The size that `LoadImageFromFile` is to expect.

    That is the annotation file's where it is the image's, with or without EXIF rotation, else the image's own; None if
    the header cannot be read.
    """
    sizes = image_sizes(path)
    return sizes and (written if written in sizes else sizes[0])


class ImageFinder:
    """Finds the image of a name without suffix; lists each folder once."""

    def __init__(self) -> None:
        self._by_stem = cache(lambda folder: {path.stem: path for path in reversed(images_in(folder))})

    def __call__(self, folder: Path, stem: str, named: Iterable[str] = ()) -> Path:
        """The file of this stem, or of one of the names, in the folder; `stem.jpg` where there is none of them."""
        below = Path(stem)  # lists may say 'night/0001'
        if found := self._by_stem((folder / below).parent).get(below.name):
            return found
        paths = (folder / Path(name.replace('\\', '/')).name for name in named if name)
        return next((path for path in paths if path.is_file()), folder / f'{stem}.jpg')
