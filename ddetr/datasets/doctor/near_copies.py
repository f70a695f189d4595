"""Finding images that show the same, by comparing all with all."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .image_facts import SIDE, ImageFacts

NEAR_BITS = 40  # of SIDE * SIDE; among COCO's images the nearest two differ in 68
NEAR_CORRELATION = 0.9  # of the small pictures; keeps pages and skies apart, whose few details differ
ROWS = 256  # images compared with all others at a time


class Copy(NamedTuple):
    """An image, and an earlier one that shows the same."""

    image: Path
    original: Path
    bits: int  # in which their hashes differ
    mirrored: bool


def equal_files(facts: dict[Path, ImageFacts]) -> dict[Path, Path]:
    """Files with the same bytes: each later one, and the first."""
    first: dict[bytes, Path] = {}
    later = {}
    for path, image in facts.items():
        if image.digest and first.setdefault(image.digest, path) != path:
            later[path] = first[image.digest]
    return later


def near_copies(facts: dict[Path, ImageFacts], splits_of: Callable[[Path], object]) -> list[Copy]:
    """For each image the most similar earlier ones, in its own and in other splits, mirrored or not.

    Two pictures are nearly the same if their difference hashes agree in nearly all bits and their small pictures
    correlate.
    """
    copies = equal_files(facts)
    paths = [path for path, f in facts.items() if f.hash is not None and path not in copies]
    if len(paths) < 2:
        return []
    hashes = np.stack([facts[path].hash for path in paths])  # (I, SIDE * SIDE / 8) uint8
    mirrored = np.packbits(1 - np.unpackbits(hashes, axis=1).reshape(-1, SIDE, SIDE)[:, :, ::-1], axis=2)
    words = [h.reshape(len(paths), -1).view(np.uint64) for h in (hashes, mirrored)]  # (I, SIDE * SIDE / 64)
    small = np.stack([facts[path].small for path in paths]).astype(np.float32)
    groups = [splits_of(path) for path in paths]
    found = []
    for start in range(0, len(paths), ROWS):
        rows = slice(start, min(start + ROWS, len(paths)))
        for flipped in (False, True):
            near_rows, near_columns = _candidates(words[flipped][rows], words[0][: rows.stop], start)
            for a, b in zip(near_rows + start, near_columns, strict=True):
                other = small[b][:, ::-1] if flipped else small[b]
                if _correlation(small[a], other) >= NEAR_CORRELATION:
                    bits = int(np.bitwise_count(words[flipped][a] ^ words[0][b]).sum())
                    found.append((groups[a] != groups[b], Copy(paths[a], paths[b], bits, flipped)))
    return _nearest(found)


def _candidates(rows: np.ndarray, columns: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a row (R, W) and an earlier column (C, W) uint64 that differ in at most NEAR_BITS bits."""
    bits = np.zeros((len(rows), len(columns)), dtype=np.uint16)
    for word in range(rows.shape[1]):
        bits += np.bitwise_count(rows[:, word, None] ^ columns[None, :, word])
    earlier = np.arange(len(columns))[None] < np.arange(start, start + len(rows))[:, None]
    return np.nonzero((bits <= NEAR_BITS) & earlier)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures (H, W, 3); 0 where one is of one colour, which looks like any other such."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float((a * b).sum()) / norm if norm > a.size else 0.0


def _nearest(found: list[tuple[bool, Copy]]) -> list[Copy]:
    """Of each image the nearest of each kind: in the same split, and in another."""
    best: dict[tuple[Path, bool], Copy] = {}
    for across, copy in found:
        if copy.bits < best.get((copy.image, across), copy._replace(bits=SIDE * SIDE)).bits:
            best[copy.image, across] = copy
    return list(best.values())
