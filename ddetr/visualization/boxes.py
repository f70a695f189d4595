"""Drawing of labelled boxes on images."""

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
    """Style of boxes. Sizes that are None depend on the image size."""

    line_px: float | None = None
    font_px: int | None = None
    alpha: float = 1.0  # opacity of the lines
    fill: float = 0.0  # opacity of the box area; 0 for no fill
    text_color: Color | None = None  # None: black or white, whichever is legible
    font_file: str | None = (
        None  # TrueType or OpenType font; None for DejaVu Sans, which has no Chinese characters
    )


def draw_boxes(
    image: np.ndarray,
    boxes_xyxy_px: np.ndarray,
    texts: Sequence[str],
    colors: Sequence[Color],
    style: BoxStyle = BoxStyle(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """Draw boxes with non-overlapping labels; a label without space near its box is omitted.

    Args:
        image: Image, (H, W, 3) RGB uint8; not modified.
        boxes_xyxy_px: Boxes (N, 4); later boxes are drawn on top, and their labels are placed first.
        texts: N labels; empty ones are not drawn.
        colors: N colours.
        style: Style of boxes and labels.

    Returns:
        New picture, (H, W, 3) RGB uint8.
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
    """Choose the line width by image size: 2 pixels at 720 x 480, 12 at 4000 x 3000."""
    return max(LEAST_LINE_PX, round(_size(image) / 300))


def automatic_font_px(image: np.ndarray) -> int:
    """Choose the font size by image size: 13 pixels at 720 x 480, 77 at 4000 x 3000."""
    return max(LEAST_FONT_PX, round(_size(image) / 45))


def _size(image: np.ndarray) -> float:
    """Return the mean side length; for elongated images it depends on the short side."""
    short, long = sorted(image.shape[:2])
    return (short * min(long, 3 * short)) ** 0.5


def _draw_frames(
    image: np.ndarray, boxes: np.ndarray, colors: Sequence[Color], line: int, style: BoxStyle
) -> np.ndarray:
    """Draw fills, dark rims and lines of all boxes; lines at the image border are moved inside."""
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
    rim = line + 2 * max(1, round(line / 3)) if line > 1 else line  # a rim would hide 1-pixel lines
    for x1, y1, x2, y2 in corners:
        cv2.rectangle(rims, (x1, y1), (x2, y2), 1, rim)
    picture = picture.copy() if picture is image else picture
    picture >>= rims[..., None]  # half the brightness, so that lines stand out on backgrounds of their colour
    lines = picture if style.alpha == 1 else picture.copy()
    for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
        cv2.rectangle(lines, (x1, y1), (x2, y2), color, line)
    return picture if style.alpha == 1 else cv2.addWeighted(lines, style.alpha, picture, 1 - style.alpha, 0)


def _label(
    size_wh: tuple[int, int], text: str, color: Color, text_color: Color, font: ImageFont.FreeTypeFont
) -> np.ndarray:
    """Render a label as a picture (h, w, 3)."""
    label = Image.new('RGB', size_wh, color)
    ascent, descent = font.getmetrics()
    baseline = round((size_wh[1] + ascent - descent) / 2)
    ImageDraw.Draw(label).text((_padding(font), baseline), text, text_color, font, 'ls')
    return np.asarray(label)


def _padding(font: ImageFont.FreeTypeFont) -> int:
    """Padding between label border and text in pixels."""
    return max(3, round(font.size / 3.5))


@lru_cache(maxsize=32)
def _font(file: str | None, size_px: int) -> ImageFont.FreeTypeFont:
    if file is None:
        import matplotlib  # comes with DejaVu Sans

        file = str(Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'))
    return ImageFont.truetype(file, size_px)
