"""Detection of near-duplicate images by pairwise comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .image_facts import SIDE, ImageFacts

NEAR_BITS = 40  # of SIDE * SIDE; the closest pair of different COCO images differs in 68
NEAR_CORRELATION = 0.9  # of the thumbnails; separates images with little detail, such as pages and skies
ROWS = 256  # images compared with all others at a time
TRIED = 4  # number of nearest hashes per image whose thumbnails are compared


class Copy(NamedTuple):
    """A near-duplicate: an image and the earlier one that it resembles."""

    image: Path
    original: Path
    bits: int  # number of differing hash bits
    mirrored: bool


def equal_files(facts: dict[Path, ImageFacts]) -> dict[Path, Path]:
    """Map each file to the first one with the same bytes."""
    first: dict[bytes, Path] = {}
    later = {}
    for path, image in facts.items():
        if image.digest and first.setdefault(image.digest, path) != path:
            later[path] = first[image.digest]
    return later


def near_copies(facts: dict[Path, ImageFacts], splits_of: Callable[[Path], object]) -> list[Copy]:
    """Find the most similar earlier images of each image, in its own and in other splits, mirrored or not.

    Two images are near-duplicates if their difference hashes agree in nearly all bits and their thumbnails correlate.
    """
    copies = equal_files(facts)
    known = {p: f for p, f in facts.items() if f.hash is not None and f.small is not None and p not in copies}
    paths = list(known)
    if len(paths) < 2:
        return []
    hashes = np.stack([np.asarray(f.hash) for f in known.values()])  # (I, SIDE * SIDE / 8) uint8
    mirrored = np.packbits(1 - np.unpackbits(hashes, axis=1).reshape(-1, SIDE, SIDE)[:, :, ::-1], axis=2)
    words = [h.reshape(len(paths), -1).view(np.uint64) for h in (hashes, mirrored)]  # (I, SIDE * SIDE / 64)
    small = np.stack([np.asarray(f.small, dtype=np.float32) for f in known.values()])
    groups = np.unique([repr(splits_of(path)) for path in paths], return_inverse=True)[1]
    found: list[tuple[bool, Copy]] = []
    for start in range(0, len(paths), ROWS):
        end = min(start + ROWS, len(paths))
        for flipped in (False, True):
            bits = _different_bits(words[flipped][start:end], words[0][:end])
            for row in np.flatnonzero((bits <= NEAR_BITS).any(axis=1)):
                image = start + row
                for other in _tried(bits[row, :image], groups[:image] != groups[image]):
                    picture = small[other][:, ::-1] if flipped else small[other]
                    if _correlation(small[image], picture) >= NEAR_CORRELATION:
                        copy = Copy(paths[image], paths[other], int(bits[row, other]), flipped)
                        found.append((bool(groups[image] != groups[other]), copy))
    return _nearest(found)


def _different_bits(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(R, C) uint16, Hamming distances between hashes (R, W) and (C, W) uint64."""
    bits = np.zeros((len(rows), len(columns)), dtype=np.uint16)
    for word in range(rows.shape[1]):
        bits += np.bitwise_count(rows[:, word, None] ^ columns[None, :, word])
    return bits


def _tried(bits: np.ndarray, across: np.ndarray) -> list[int]:
    """Pick the nearest earlier images (C,) in an image's own split and in others; all frames of a video are near."""
    near = np.flatnonzero(bits <= NEAR_BITS)
    near = near[np.argsort(bits[near], kind='stable')]
    return [int(i) for kind in (False, True) for i in near[across[near] == kind][:TRIED]]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures (H, W, 3); 0 if one is uniform, since all uniform pictures look alike."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm > a.size else 0.0


def _nearest(found: list[tuple[bool, Copy]]) -> list[Copy]:
    """Keep the nearest copy of each image in its own split and in another."""
    best: dict[tuple[Path, bool], Copy] = {}
    for across, copy in found:
        if copy.bits < best.get((copy.image, across), copy._replace(bits=SIDE * SIDE)).bits:
            best[copy.image, across] = copy
    return list(best.values())
