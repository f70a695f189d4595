"""Boxes with labels, drawn on an image."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .colors import Color, text_color_on
from .labels import place_labels

LEAST_FONT_PX, LEAST_LINE_PX = 12, 2


class BoxStyle(NamedTuple):
    """How boxes look. What is None follows from the picture's size."""

    line_px: float | None = None
    font_px: int | None = None
    alpha: float = 1.0  # opacity of the lines
    fill: float = 0.0  # opacity of the boxes' area; 0 leaves them empty
    text_color: Color | None = None  # None: black or white, whichever is legible
    font_file: str | None = (
        None  # a TrueType or OpenType font; None: DejaVu Sans, which has no Chinese characters
    )


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy_px: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[Color],
    style: BoxStyle = BoxStyle(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """Draw boxes with labels that do not cover each other; a label without room near its box is left out.

    Args:
        image: (H, W, 3) RGB uint8; it stays as it is.
        boxes_xyxy_px: (N, 4); the last ones are drawn on top, and their labels are placed first.
        texts: N labels; an empty one is not drawn.
        colors: N colours.
        style: See there.

    Returns:
        The picture, (H, W, 3) RGB uint8.
    """
    height, width = image.shape[:2]
    line = round(style.line_px if style.line_px is not None else automatic_line_px(image))
    boxes = np.asarray(boxes_xyxy_px, dtype=float).reshape(-1, 4)
    picture = _draw_frames(np.ascontiguousarray(image), boxes, colors, max(line, 1), style)
    font = _font(style.font_file, style.font_px or automatic_font_px(image))
    order = [i for i in reversed(range(len(boxes))) if texts[i]]
    text_height = sum(font.getmetrics()) + _padding(font) // 2
    sizes = [(font.getlength(texts[i]) + 2 * _padding(font), text_height) for i in order]
    inside = boxes.clip(0, [width, height, width, height])
    places = place_labels(inside[order], np.ceil(np.reshape(sizes, (-1, 2))), (width, height))
    for i, place in zip(order, places, strict=True):
        if place is not None and not place.attached:
            middle = (place.xyxy[:2] + place.xyxy[2:]) / 2
            nearest = middle.clip(inside[i, :2], inside[i, 2:])
            start, end = np.round([middle, nearest]).astype(int).tolist()
            cv2.line(picture, start, end, colors[i], max(1, round(font.size / 12)), cv2.LINE_AA)
    for i, place in zip(order, places, strict=True):
        if place is not None:
            x1, y1, x2, y2 = np.round(place.xyxy).astype(int)
            text_color = style.text_color or text_color_on(colors[i])
            picture[y1:y2, x1:x2] = _label((x2 - x1, y2 - y1), texts[i], colors[i], text_color, font)
    return picture


def automatic_line_px(image: np.ndarray) -> int:
    """Width of the boxes' lines by the picture's size: 2 pixels at 720 x 480, 12 at 4000 x 3000."""
    return max(LEAST_LINE_PX, round(_size(image) / 300))


def automatic_font_px(image: np.ndarray) -> int:
    """Size of the labels' font by the picture's size: 13 pixels at 720 x 480, 77 at 4000 x 3000."""
    return max(LEAST_FONT_PX, round(_size(image) / 45))


def _size(image: np.ndarray) -> float:
    """Mean of the sides; long strips count by their short side."""
    short, long = sorted(image.shape[:2])
    return (short * min(long, 3 * short)) ** 0.5


def _draw_frames(
    image: np.ndarray, boxes: np.ndarray, colors: Sequence[Color], line: int, style: BoxStyle
) -> np.ndarray:
    """Areas, dark rims and lines of all boxes; those at the picture's edges are drawn inside."""
    height, width = image.shape[:2]
    inset = line / 2
    limits = np.array([width, height, width, height]) - 1 - inset
    corners = np.round(np.clip(boxes, min(inset, limits.min()), limits)).astype(int).tolist()
    picture = image
    if style.fill > 0:
        areas = picture.copy()
        for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
            cv2.rectangle(areas, (x1, y1), (x2, y2), color, cv2.FILLED)
        picture = cv2.addWeighted(areas, style.fill, picture, 1 - style.fill, 0)
    rims = np.zeros((height, width), dtype=np.uint8)
    rim = line + 2 * max(1, round(line / 3)) if line > 1 else line  # it would drown lines of one pixel
    for x1, y1, x2, y2 in corners:
        cv2.rectangle(rims, (x1, y1), (x2, y2), 1, rim)
    picture = picture.copy() if picture is image else picture
    picture >>= rims[..., None]  # half as bright: sets lines off from backgrounds of their colour
    lines = picture if style.alpha == 1 else picture.copy()
    for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
        cv2.rectangle(lines, (x1, y1), (x2, y2), color, line)
    return picture if style.alpha == 1 else cv2.addWeighted(lines, style.alpha, picture, 1 - style.alpha, 0)


def _label(
    size_wh: tuple[int, int], text: str, color: Color, text_color: Color, font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """A label of its own, (h, w, 3)."""
    label = Image.new('RGB', size_wh, color)
    ascent, descent = font.getmetrics()
    baseline = round((size_wh[1] + ascent - descent) / 2)
    ImageDraw.Draw(label).text((_padding(font), baseline), text, text_color, font, 'ls')
    return np.asarray(label)


def _padding(font: ImageFont.FreeTypeFont) -> int:
    """Pixels between a label's edges and its text."""
    return max(3, round(font.size / 3.5))


@lru_cache(maxsize=32)
def _font(file: str | None, size_px: int) -> ImageFont.FreeTypeFont:
    if file is None:
        import matplotlib  # comes with DejaVu Sans

        file = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
    return ImageFont.truetype(file, size_px)
