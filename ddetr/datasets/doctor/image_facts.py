"""Facts about the images of a dataset, each opened once, in several threads."""

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from ddetr.utils.progress import track

SIDE = 16  # side of the thumbnail and the hash
TRUSTED = {'JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'MPO'}  # formats that Pillow and OpenCV both read
ORIENTATION = 274  # EXIF tag


class ImageFacts(NamedTuple):
    """Facts read from an image file."""

    problem: str = ''  # 'missing', 'empty', 'unreadable' or 'truncated'
    detail: str = ''  # message of the decoder
    size: tuple[int, int] | None = None  # width, height of the stored pixels, before EXIF rotation
    orientation: int = 1  # EXIF; 1 is upright, 5 to 8 swap width and height
    format: str = ''  # 'JPEG', 'PNG', ...
    mode: str = ''  # Pillow's: 'RGB', 'L', 'CMYK', 'I;16', ...
    digest: bytes = b''  # hash of the file
    small: np.ndarray | None = None  # (SIDE, SIDE, 3) uint8 RGB
    hash: np.ndarray | None = None  # (SIDE * SIDE / 8,) uint8, difference hash

    @property
    def upright_size(self) -> tuple[int, int] | None:
        """Width and height after EXIF rotation."""
        return self.size[::-1] if self.size and self.orientation >= 5 else self.size


def read_facts(path: Path) -> ImageFacts:
    """Open one image and decode it completely, at reduced size if the format supports it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return ImageFacts('missing' if not path.exists() else 'unreadable', error.strerror or str(error))
    if not data:
        return ImageFacts('empty', 'the file has 0 bytes')
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow warns about damaged metadata and very large images
            image = Image.open(io.BytesIO(data))
            header = ImageFacts(
                size=image.size,
                orientation=_orientation(image),
                format=image.format or '',
                mode=image.mode,
                digest=digest,
            )
    except Exception as error:  # Pillow's plugins can raise any exception on malformed files
        return ImageFacts('unreadable', _words(error), digest=digest)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            image.draft('RGB', (4 * SIDE, 4 * SIDE))
            pixels = to_rgb(image)
    except Exception as error:
        cut = 'truncated' in str(error) or isinstance(error, EOFError) or _lacks_end(header.format, data)
        return header._replace(problem='truncated' if cut else 'unreadable', detail=_words(error))
    if header.format not in TRUSTED and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None:
        return header._replace(problem='unreadable', detail=f'OpenCV cannot decode {header.format} images')
    small = np.asarray(pixels.resize((SIDE, SIDE), Image.Resampling.BOX))
    return header._replace(small=small, hash=_difference_hash(pixels))


def read_all_facts(paths: Sequence[Path], workers: int | None = None) -> dict[Path, ImageFacts]:
    """Open all images in `workers` threads, by default one per CPU, with progress lines.

    Threads suffice because decoders release the GIL, and unlike new processes they need not import PyTorch first.
    """
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        facts = pool.map(read_facts, paths)
        return {path: next(facts) for path in track(paths, 'opening images')}


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata; the pixels may be fine
        return 1
    return value if value in range(1, 9) else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to 8-bit RGB; 16-bit values are stretched between the darkest and the brightest pixel."""
    if image.mode.startswith(('I', 'F')):  # Pillow clips 16 bits at 255
        values = np.asarray(image, dtype=np.float64)
        spread = max(float(np.ptp(values)), 1.0)
        image = Image.fromarray(((values - values.min()) * (255 / spread)).astype(np.uint8))
    return image.convert('RGB')


def _difference_hash(pixels: Image.Image) -> np.ndarray:
    """Difference hash (dHash): one bit for each of SIDE x SIDE pixels, set if its right neighbour is brighter.

    Resizing, recompression and slight changes in brightness keep nearly all bits.
    """
    grey = np.asarray(pixels.convert('L').resize((SIDE + 1, SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(grey[:, 1:] > grey[:, :-1])


def _lacks_end(kind: str, data: bytes) -> bool:
    ends = {'JPEG': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82'}
    return kind in ends and ends[kind] not in data[-64:]


def _words(error: Exception) -> str:
    return ' '.join(str(error).split())[:120] or type(error).__name__
