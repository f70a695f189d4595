"""Class colours, consistent across all pictures and pages."""

import colorsys
from collections.abc import Sequence

Color = tuple[int, int, int]  # r g b, 0..255

GOLDEN_RATIO = 0.618034
TONES = ((0.80, 0.98), (0.95, 0.72), (0.50, 1.0))  # saturation and value, alternating
LEAST_LUMINANCE = 0.15  # saturated blue has 0.07, which is hard to see on dark images


def class_color(label: int, palette: Sequence[Sequence[int]] | None = None) -> Color:
    """Return the colour of a class: from the palette, or by golden ratio steps around the colour wheel.

    Consecutive labels differ most; the tone changes after each full turn.
    """
    if palette is not None and label < len(palette):
        red, green, blue = palette[label]
        return int(red), int(green), int(blue)
    tone = TONES[label // 9 % len(TONES)]
    parts = colorsys.hsv_to_rgb((0.97 + label * GOLDEN_RATIO) % 1, *tone)
    color = round(255 * parts[0]), round(255 * parts[1]), round(255 * parts[2])
    while _luminance(color) < LEAST_LUMINANCE:
        color = color[0] + (255 - color[0]) // 10, color[1] + (255 - color[1]) // 10, color[2]
    return color


def text_color_on(background: Color) -> Color:
    """Return black or white, whichever has the higher contrast: at least 4.58:1 on any colour."""
    white, black = (255, 255, 255), (0, 0, 0)
    return white if contrast(white, background) >= contrast(black, background) else black


def contrast(first: Color, second: Color) -> float:
    """Contrast ratio of two colours, 1 to 21, as defined by WCAG 2.2."""
    darker, lighter = sorted((_luminance(first), _luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: Color) -> float:
    """Relative luminance of an sRGB colour, 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
