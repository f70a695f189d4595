"""Find inputs (images, folders, patterns, videos, cameras, URLs), and choose the names of their results."""

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ddetr.utils.errors import InputError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')
STREAMS = ('rtsp', 'rtmp', 'udp')


class Source(NamedTuple):
    """Image or video to read, and the name of its results."""

    place: str | int  # path, URL, or camera index
    name: str  # relative path of the results, before their suffix is added: `cat.jpg`, or `b/cat.jpg`
    is_video: bool


def list_images(path: str | Path) -> list[Path]:
    """List an image file, or the images in a folder sorted by name.

    Raises:
        InputError: The path does not exist, or the folder contains no images.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f'{path} does not exist: pass an image or a folder of images.')
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise InputError(
            f"{path} contains no images ({', '.join(IMAGE_SUFFIXES)}). To include subfolders, use '{path}/**'."
        )
    return images


def find_sources(inputs: Iterable[str | int | Path]) -> list[Source]:
    """Find all images and videos, without duplicates and in the given order; folders and patterns are sorted by name.

    Args:
        inputs: Files; folders; patterns with `*`, `?`, `[...]` and `**`; URLs such as `https://...` and `rtsp://...`;
            camera indices.

    Raises:
        InputError: An input does not exist, or contains no file with an image or video suffix.
    """
    places = list(dict.fromkeys(place for entry in inputs for place in _expand(entry)))
    if not places:
        raise InputError('no input: pass images, folders, patterns, videos, cameras or URLs.')
    names = _result_names(places)
    return [Source(place, name, _is_video(place)) for place, name in zip(places, names, strict=True)]


def _expand(entry: str | int | Path) -> Iterator[str | int]:
    if isinstance(entry, int) or '://' in str(entry):
        yield str(entry) if isinstance(entry, Path) else entry
        return
    path = Path(entry).expanduser()
    if path.is_dir():
        found = [file for file in path.iterdir() if file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)]
        yield from map(str, sorted(found) or list_images(path))
    elif path.is_file():
        yield os.path.normpath(path)
    elif str(entry).isdecimal():
        yield int(str(entry))
    elif glob.has_magic(str(path)):
        matches = (Path(match) for match in glob.glob(str(path), recursive=True))
        suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
        found = sorted(match for match in matches if match.suffix.lower() in suffixes and match.is_file())
        if not found:
            raise InputError(
                f'{entry} matches no image or video: check the pattern, and quote it in the shell.'
            )
        yield from map(str, found)
    else:
        raise InputError(f'{entry} does not exist: pass an image, a folder, a pattern, a video or a camera.')


def _is_video(place: str | int) -> bool:
    if isinstance(place, int):
        return True
    address = urlsplit(place) if '://' in place else None
    return Path(address.path if address else place).suffix.lower() in VIDEO_SUFFIXES or bool(
        address and address.scheme in STREAMS
    )


def _result_names(places: Sequence[str | int]) -> list[str]:
    """File names of the results. Duplicate names are prefixed with as many parent folders as needed."""
    parts = [_parts(place) for place in places]
    same: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(parts):
        same[path[-1].casefold()].append(index)
    names = [path[-1] for path in parts]
    for group in same.values():
        longest = max(len(parts[i]) for i in group)
        for length in range(1, longest + 1):
            for i in group:
                names[i] = PurePath(*parts[i][-length:]).as_posix()
            if len({names[i].casefold() for i in group}) == len(group):
                break
        else:  # URLs that differ only in their query, names that differ only in case
            for number, i in enumerate(group, 1):
                names[i] = f'{number}/{parts[i][-1]}'
    return names


def _parts(place: str | int) -> list[str]:
    if isinstance(place, int):
        return [f'camera{place}']
    if '://' in place:
        address = urlsplit(place)
        return [
            p for p in (address.hostname or '', *unquote(address.path).split('/')) if p not in ('', '.', '..')
        ]
    path = Path(os.path.abspath(place))
    return list(path.parts[1:])
