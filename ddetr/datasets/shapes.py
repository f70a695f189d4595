"""Synthetic dataset: shapes on textured backgrounds, in COCO's format and folder layout.

It replaces COCO where nothing can be downloaded. Shapes of six classes, with random sizes, proportions, rotations,
colours and fills, overlap on random textures.

As in COCO, a box and its `area` cover only the *visible* part of an object, without what other shapes or the image
border hide. Boxes are exact to 1/4 pixel. A shape is not drawn if its visible fraction would be below `MIN_VISIBLE`.
"""

import dataclasses
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ddetr.utils.errors import InputError
from ddetr.utils.files import write_json
from ddetr.utils.progress import track

SUPERSAMPLING = 4  # shapes are drawn on a grid this much finer than the pixels
FIXED_BITS = 4  # fractional bits of coordinates in OpenCV's drawing functions
MIN_VISIBLE = 0.6
SHADOW_REACH = 8  # pixels
SMALLEST, LARGEST = 0.14, 0.9  # diameter of a shape as a fraction of the longer image side
LARGEST_TILT = 30  # degrees, in either direction
EMPTY_SHARE = 0.02  # fraction of images without any shape

Generator = np.random.Generator
Color = np.ndarray  # (3,) float BGR in [0, 255]


@dataclass(frozen=True)
class ShapesRecipe:
    """Parameters that determine every pixel of the dataset."""

    num_train: int = 1500  # images in `train2017/`
    num_val: int = 200  # images in `val2017/`
    size: int = 192  # longer side of every image in pixels; the shorter side is at least 2/3 of it
    max_objects: int = 6  # maximum number of shapes per image
    seed: int = 0  # seed of the random generators

    def __post_init__(self) -> None:
        for name, least in (('num_train', 1), ('num_val', 1), ('size', 64), ('max_objects', 1), ('seed', 0)):
            if getattr(self, name) < least:
                raise InputError(f'shapes: {name} must be at least {least}, not {getattr(self, name)}')


def _on_circle(degrees: np.ndarray, radius: float | np.ndarray = 1.0) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.asarray(radius).reshape(-1, 1)


def _cross(arm: float = 0.34) -> np.ndarray:
    points = np.array([[arm, -1], [arm, -arm], [1, -arm]])
    turn = np.array([[0, -1], [1, 0]], dtype=float)  # rotation by 90 degrees
    turns = [points @ np.linalg.matrix_power(turn, k).T for k in range(4)]
    return np.concatenate(turns) / math.hypot(1, arm)


CIRCLE = _on_circle(np.arange(0, 360, 5))
OUTLINES = {
    'circle': [CIRCLE],
    'square': [_on_circle(np.arange(45, 360, 90))],
    'triangle': [_on_circle(np.arange(-90, 270, 120))],
    'star': [_on_circle(np.arange(-90, 270, 36), np.tile([1.0, 0.45], 5))],
    'ring': [CIRCLE, CIRCLE * 0.55],  # the inner outline is a hole, by the even-odd rule
    'cross': [_cross()],
}
SHAPE_CLASSES = tuple(OUTLINES)


class Shape(NamedTuple):
    """One shape to draw."""

    label: int
    outlines_px: list[np.ndarray]  # each (P, 2): x, y in pixels
    color: Color
    fill: str


class Patch(NamedTuple):
    """Mask on the fine grid and its position; `x` and `y` are multiples of `SUPERSAMPLING`."""

    x: int
    y: int
    mask: np.ndarray  # (h, w) bool

    def of(self, grid: np.ndarray) -> np.ndarray:
        """Return the region of the fine grid that the patch covers, an (h, w) view."""
        h, w = self.mask.shape
        return grid[self.y : self.y + h, self.x : self.x + w]


def _random_color(rng: Generator) -> Color:
    hsv = np.array([[[rng.integers(180), rng.integers(120, 256), rng.integers(130, 256)]]], dtype=np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(float)


def _texture(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw smooth noise at three scales, (h, w) in [-1, 1]."""
    noise = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.2)):
        grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        noise += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return noise


def _stripes(rng: Generator, height: int, width: int, period: float) -> np.ndarray:
    """Draw a wave in a random direction, (h, w) in [-1, 1]."""
    angle = rng.uniform(0, math.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period) + rng.uniform(0, 6.3))


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Convert points to OpenCV's fixed-point coordinates."""
    return np.rint(points * 2**FIXED_BITS).astype(np.int32)


def _background(rng: Generator, height: int, width: int) -> np.ndarray:
    """Draw a muted two-coloured texture with a few thin distractor curves, (h, w, 3) float32 BGR."""
    dark, light = np.sort(rng.uniform(40, 215, (2, 3)), axis=0)
    mix = 0.5 + 0.5 * _texture(rng, height, width)
    if rng.random() < 0.4:
        mix = 0.75 * mix + 0.125 * (1 + _stripes(rng, height, width, rng.uniform(8, 40)))
    image = (dark + np.clip(mix, 0, 1)[..., None] * (light - dark)).astype(np.float32)
    for _ in range(rng.integers(0, 4)):
        headings = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.3, 40))
        steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (0.025 * max(height, width))
        curve = np.cumsum(steps, axis=0) + rng.random(2) * [width, height]
        color = tuple(float(c) for c in rng.uniform(dark, light))
        thickness = int(rng.integers(1, 3))
        cv2.polylines(image, [_fixed_point(curve)], False, color, thickness, cv2.LINE_AA, FIXED_BITS)
    return image


def _random_shape(rng: Generator, background: np.ndarray) -> Shape:
    height, width = background.shape[:2]
    label = int(rng.integers(len(SHAPE_CLASSES)))
    # log-uniform sizes: as many small shapes as large ones
    radius = 0.5 * max(height, width) * math.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST)))
    stretch = math.exp(rng.uniform(-0.2, 0.2))
    angle = math.radians(rng.uniform(-LARGEST_TILT, LARGEST_TILT))
    margin = np.minimum(0.6 * radius, [0.4 * width, 0.4 * height])  # keeps most shapes fully inside
    center = rng.uniform(margin, [width, height] - margin)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    scale = radius * np.array([stretch, 1 / stretch])
    outlines = [(points * scale) @ rotation.T + center for points in OUTLINES[SHAPE_CLASSES[label]]]
    under = background[int(center[1]), int(center[0])]
    color = max((_random_color(rng) for _ in range(4)), key=lambda c: float(np.abs(c - under).sum()))
    return Shape(label, outlines, color, str(rng.choice(['flat', 'shaded', 'striped', 'noisy'])))


def _rasterize(outlines_px: list[np.ndarray], height: int, width: int) -> Patch | None:
    """Fill outlines on the fine grid, clipped at the image border; None if nothing is left."""
    corners = np.concatenate(outlines_px)
    x1, y1 = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    x2, y2 = np.minimum(np.ceil(corners.max(axis=0)), [width, height]).astype(int)
    if x1 >= x2 or y1 >= y2:
        return None
    mask = np.zeros(((y2 - y1) * SUPERSAMPLING, (x2 - x1) * SUPERSAMPLING), dtype=np.uint8)
    # -0.5: in OpenCV, integer coordinates are pixel centres, not corners
    fine = [_fixed_point((points - [x1, y1]) * SUPERSAMPLING - 0.5) for points in outlines_px]
    cv2.fillPoly(mask, fine, 1, cv2.LINE_8, FIXED_BITS)
    if not mask.any():
        return None
    return Patch(x1 * SUPERSAMPLING, y1 * SUPERSAMPLING, mask.astype(bool))


def _fill(rng: Generator, shape: Shape, height: int, width: int) -> np.ndarray:
    """Draw the colours of a shape's patch, (h, w, 3) float32 BGR."""
    light = np.zeros((height, width), dtype=np.float32)  # flat
    if shape.fill == 'shaded':
        light = _stripes(rng, height, width, 2.5 * max(height, width))
    elif shape.fill == 'striped':
        light = np.clip(3 * _stripes(rng, height, width, max(5.0, height / rng.uniform(2, 5))), -1, 1)
    elif shape.fill == 'noisy':
        light = _texture(rng, height, width)
    return (shape.color * (1 + 0.25 * light[..., None])).astype(np.float32)


def _paint(image: np.ndarray, patch: Patch, colors: np.ndarray) -> None:
    """Blend a patch into the image with anti-aliased edges and a soft shadow."""
    x, y = patch.x // SUPERSAMPLING, patch.y // SUPERSAMPLING
    h, w = colors.shape[:2]
    top, left = max(0, y - SHADOW_REACH), max(0, x - SHADOW_REACH)
    around = image[top : y + h + SHADOW_REACH, left : x + w + SHADOW_REACH]  # a view
    coverage = np.zeros(around.shape[:2], dtype=np.float32)  # in [0, 1]
    alpha = coverage[y - top : y - top + h, x - left : x - left + w]
    alpha[:] = cv2.resize(patch.mask.astype(np.float32), (w, h), interpolation=cv2.INTER_AREA)
    shadow = cv2.GaussianBlur(coverage, (0, 0), 2)
    around[2:, 1:] *= 1 - 0.35 * shadow[:-2, :-1, None]
    inside = image[y : y + h, x : x + w]
    inside += (colors - inside) * alpha[..., None]


def _visible_box(owner: np.ndarray, patch: Patch, number: int) -> tuple[list[float], float]:
    """Return the box (x, y, w, h in pixels) and area (square pixels) of a patch's visible part; zeros if hidden."""
    seen = (patch.of(owner) == number).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(seen)
    if not w:
        return [0.0] * 4, 0.0
    box = [float(v) / SUPERSAMPLING for v in (patch.x + x, patch.y + y, w, h)]
    return box, float(seen.sum()) / SUPERSAMPLING**2


def _full_area(shape: Shape) -> float:
    """Return the area of a shape in square pixels, hidden parts included."""
    areas = [cv2.contourArea(outline.astype(np.float32)) for outline in shape.outlines_px]
    return areas[0] - sum(areas[1:])


def draw_image(rng: Generator, recipe: ShapesRecipe) -> tuple[np.ndarray, list[dict]]:
    """Draw one image.

    Returns:
        (H, W, 3) uint8 BGR, and its annotations: `bbox` (x, y, w, h in pixels), `area` in square pixels,
        `category_id` (1 for the first class), `iscrowd`.
    """
    short = round(recipe.size * rng.uniform(2 / 3, 1))
    height, width = (recipe.size, short) if rng.random() < 0.4 else (short, recipe.size)
    image = _background(rng, height, width)
    # number of the visible shape at each point of the fine grid, 0 for the background
    owner = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), dtype=np.uint8)
    wanted = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, recipe.max_objects + 1)
    drawn: list[tuple[Shape, Patch]] = []
    for _ in range(8 * wanted):
        if len(drawn) == wanted:
            break
        shape = _random_shape(rng, image)
        patch = _rasterize(shape.outlines_px, height, width)
        if patch is None:
            continue
        trial = owner.copy()
        np.copyto(patch.of(trial), len(drawn) + 1, where=patch.mask)
        with_it = [*drawn, (shape, patch)]
        if all(
            _visible_box(trial, p, number)[1] >= MIN_VISIBLE * _full_area(s)
            for number, (s, p) in enumerate(with_it, start=1)
        ):
            owner, drawn = trial, with_it
            _paint(image, patch, _fill(rng, shape, *(side // SUPERSAMPLING for side in patch.mask.shape)))
    annotations = []
    for number, (shape, patch) in enumerate(drawn, start=1):
        box, area = _visible_box(owner, patch, number)
        annotations.append({'category_id': shape.label + 1, 'bbox': box, 'area': area, 'iscrowd': 0})
    image += rng.uniform(2, 8) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), annotations


def _info(recipe: ShapesRecipe) -> dict:
    return {'description': 'ddetr shapes', 'version': '1', **dataclasses.asdict(recipe)}


def _write_split(folder: Path, split: str, count: int, recipe: ShapesRecipe) -> None:
    (folder / split).mkdir(parents=True)
    names = enumerate(SHAPE_CLASSES, start=1)
    coco: dict = {
        'info': _info(recipe),
        'licenses': [],
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': name, 'supercategory': 'shape'} for i, name in names],
    }
    for image_id in track(range(1, count + 1), f'drawing {split}'):
        # one generator per image: a larger dataset starts with the same images
        rng = np.random.default_rng([recipe.seed, int(split.startswith('val')), image_id])
        image, annotations = draw_image(rng, recipe)
        name = f'{image_id:012d}.jpg'
        data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (folder / split / name).write_bytes(data.tobytes())
        height, width = image.shape[:2]
        coco['images'].append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        for annotation in annotations:
            coco['annotations'].append(
                {'id': len(coco['annotations']) + 1, 'image_id': image_id, **annotation}
            )
    write_json(coco, folder / 'annotations' / f'instances_{split}.json')


def make_shapes(out_dir: str | Path, recipe: ShapesRecipe | None = None) -> bool:
    """Draw the dataset into a folder, atomically; return False if it was there already.

    The folder gets COCO's layout: `train2017/`, `val2017/`, `annotations/instances_{train2017,val2017}.json`. An
    existing dataset of the same recipe is kept.

    Raises:
        InputError: The folder exists and contains something else.
    """
    recipe = recipe or ShapesRecipe()
    out_dir = Path(out_dir)
    if out_dir.exists():
        if _holds(out_dir, recipe):
            return False
        raise InputError(f'{out_dir} exists and is not this dataset: remove it or choose another folder')
    unfinished = out_dir.with_name(f'{out_dir.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)  # left by an interrupted run
    for split, count in (('train2017', recipe.num_train), ('val2017', recipe.num_val)):
        _write_split(unfinished, split, count, recipe)
    unfinished.rename(out_dir)
    return True


def _holds(folder: Path, recipe: ShapesRecipe) -> bool:
    try:
        coco = json.loads((folder / 'annotations' / 'instances_val2017.json').read_text())
        return coco['info'] == _info(recipe)
    except (OSError, ValueError, KeyError, TypeError):
        return False
