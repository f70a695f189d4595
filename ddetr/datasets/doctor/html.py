"""Self-contained HTML report with embedded pictures; the page makes no network requests."""

import base64
import html
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from ddetr.datasets.formats import image_size
from ddetr.datasets.formats.records import BoxXYXY
from ddetr.utils.files import write_atomically

from .faults import Example, Fault, Picture
from .image_facts import to_rgb
from .report import Report

THUMBNAIL_PX = 360  # longer side
QUALITY = 75  # JPEG
PICTURES = 6  # examples per fault that get pictures
BUDGET = 3_300_000  # total bytes of all JPEG files; base64 adds a third
CONTEXT = 6  # side of a close-up, in multiples of the box side
BOX_BGR = (60, 40, 255)
OTHER_BGR = (230, 120, 0)  # second box of a pair
MARK_PX = 12  # smaller boxes in a thumbnail get a circle and a close-up

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; color: #1c2126;
  background: #fff; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; } th, td { padding: .25rem .8rem .25rem 0; text-align: right;
  border-bottom: 1px solid #d8dde2; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
nav ul { padding-left: 1.2rem; } nav a { color: inherit; }
section { border: 1px solid #d8dde2; border-left: .4rem solid; border-radius: .3rem; padding: 1rem; margin: 1rem 0; }
.error { border-left-color: #b3261e; } .warning { border-left-color: #b26a00; } .note { border-left-color: #2f6fab; }
.badge { color: #fff; border-radius: .2rem; padding: .1rem .45rem; font-size: .75rem; text-transform: uppercase;
  margin-right: .4rem; vertical-align: .1rem; }
.error .badge, .badge.error { background: #b3261e; } .warning .badge, .badge.warning { background: #8a5200; }
.note .badge, .badge.note { background: #2f6fab; }
dl { margin: .5rem 0; } dt { font-weight: 600; } dd { margin: 0 0 .4rem; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem;
  padding: 0; margin: 1rem 0 0; list-style: none; }
.examples li { font-size: .82rem; } .pictures { display: flex; flex-wrap: wrap; gap: .3rem; margin-bottom: .3rem; }
.pictures img { max-width: 100%; height: auto; border-radius: .2rem; background: #eee; }
.more { font-size: .9rem; color: #4a545e; }
@media (max-width: 30rem) { body { padding: .6rem; } section { padding: .7rem; } }
""".strip()


def write_html(report: Report, path: str | Path, title: str = 'Dataset') -> None:
    """Write a report as an HTML page, atomically."""
    text = '\n'.join(_page(report, title))
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding='utf-8'))


def _page(report: Report, title: str) -> Iterator[str]:
    name = html.escape(title)
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    # names in the dataset are untrusted: allow no requests and no scripts
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield f'<title>{name}: dataset report</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>'
    yield f'<h1>{name}</h1>'
    yield from (f'<p>{html.escape(note)}</p>' for note in report.notes)
    yield f'<p>{html.escape(report.headline())}</p>'
    yield from _contents(report)
    yield from _tables(report)
    left = BUDGET
    for number, fault in enumerate(report.faults):
        share = left // (len(report.faults) - number)
        section, used = _section(fault, number, share)
        left -= used
        yield section
    if not report.opened:
        yield '<p>Images were not opened: faults of the image files themselves are not in this report.</p>'
    yield '</body>\n</html>\n'


def _contents(report: Report) -> Iterator[str]:
    yield '<nav><ul>'
    for number, fault in enumerate(report.faults):
        link = f'<a href="#fault{number}">{html.escape(fault.name)}</a>'
        yield f'<li><span class="badge {fault.severity}">{fault.severity}</span>{link}: {fault.count}</li>'
    yield '</ul></nav>'


def _tables(report: Report) -> Iterator[str]:
    heads = ['split', 'format', 'images', 'boxes', 'read from']
    yield _table(heads, [[s.name, s.format, f'{s.images}', f'{s.boxes}', s.source] for s in report.splits])
    heads = ['class', *(f'{split.name} boxes' for split in report.splits), 'median side (pixels)']
    classes = sorted(report.classes, key=lambda row: -sum(row.boxes))
    rows = [
        [c.name, *map(str, c.boxes), '' if math.isnan(c.side_px) else f'{c.side_px:.0f}'] for c in classes
    ]
    yield _table(heads, rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [''.join(f'<th>{html.escape(head)}</th>' for head in heads)]
    lines += [''.join(f'<td>{html.escape(cell)}</td>' for cell in row) for row in rows]
    return f'<div class="table"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _section(fault: Fault, number: int, budget: int) -> tuple[str, int]:
    """Render one fault as HTML; also return the size of its pictures in bytes, at most `budget`."""
    lines = [
        f'<section id="fault{number}" class="{fault.severity}">',
        f'<h2><span class="badge">{fault.severity}</span>{html.escape(fault.name)}: {fault.count}</h2>',
        f'<dl><dt>Consequence</dt><dd>{html.escape(fault.consequence)}</dd>',
        f'<dt>Cure</dt><dd>{html.escape(fault.cure)}</dd>',
        f'<dt>--fix</dt><dd>{html.escape(fault.fix)}</dd></dl>' if fault.fix else '</dl>',
        '<ul class="examples">',
    ]
    used = 0
    for shown, example in enumerate(fault.examples):
        pictures, size = _pictures(example) if shown < PICTURES else ('', 0)
        if used + size > budget:
            pictures, size = '', 0
        used += size
        lines.append(f'<li>{pictures}{html.escape(example.text)}</li>')
    lines.append('</ul>')
    if fault.count > len(fault.examples):
        lines.append(f'<p class="more">and {fault.count - len(fault.examples)} more</p>')
    return '\n'.join([*lines, '</section>']), used


def _pictures(example: Example) -> tuple[str, int]:
    """Render an example's pictures as HTML; also return their size in bytes."""
    files = [file for picture in example.pictures for file in _thumbnails(picture)]
    sources = (f'data:image/jpeg;base64,{base64.b64encode(file).decode()}' for file in files)
    images = ''.join(f'<img alt="" src="{source}">' for source in sources)
    return (f'<div class="pictures">{images}</div>' if files else ''), sum(map(len, files))


def _thumbnails(picture: Picture) -> Iterator[bytes]:
    """Yield JPEG files: the image with its boxes, and a close-up of small boxes and pairs; none if unreadable."""
    image = _read(picture.path)
    if image is None:
        return
    boxes = [box for box in picture.boxes if all(map(math.isfinite, box))]
    scale = min(1.0, THUMBNAIL_PX / max(image.shape[:2]))
    yield _encode(image, boxes, (0, 0, image.shape[1], image.shape[0]), scale)
    if len(picture.boxes) in (1, 2) and boxes:
        side = max(abs(boxes[0][2] - boxes[0][0]), abs(boxes[0][3] - boxes[0][1]), 4)
        small, pair = side * scale < 4 * MARK_PX, len(boxes) == 2
        around = _around(boxes[0], (CONTEXT if small else 1.5) * side, image.shape)
        width, height = around[2] - around[0], around[3] - around[1]
        if (small or pair) and min(width, height) > 0:
            yield _encode(image, boxes, around, min(8.0, THUMBNAIL_PX / 2 / max(width, height)))


def _around(box: BoxXYXY, side: float, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return x1 y1 x2 y2 of a square around a box's centre, clipped to the image (H, W, ...); possibly empty."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    low = max(0, round(cx - side / 2)), max(0, round(cy - side / 2))
    return *low, min(shape[1], round(cx + side / 2)), min(shape[0], round(cy + side / 2))


def _read(path: Path) -> np.ndarray | None:
    """Read an image as training does, (H, W, 3) BGR uint8; None if it cannot be decoded."""
    size = image_size(path)
    if size is None:
        return None
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter('ignore')
            image.draft(
                'RGB', (2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX)
            )  # decodes large JPEG files at reduced size
            upright = to_rgb(ImageOps.exif_transpose(image))
    except Exception:  # Pillow's plugins can raise any exception on malformed files
        return None
    pixels = np.asarray(upright if upright.size == size else upright.resize(size))
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _encode(image: np.ndarray, boxes: list[BoxXYXY], part: tuple[int, int, int, int], scale: float) -> bytes:
    """Crop, resize and draw boxes; boxes too small to see get a circle."""
    x1, y1, x2, y2 = part
    size = max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    canvas = cv2.resize(image[y1:y2, x1:x2], size, interpolation=mode)
    for index, box in reversed(list(enumerate(boxes))):
        color = OTHER_BGR if index and len(boxes) == 2 else BOX_BGR
        corners = (
            np.clip((np.array(box).reshape(2, 2) - (x1, y1)) * scale, -(2**14), 2**14).round().astype(int)
        )
        (left, top), (right, bottom) = corners.tolist()
        cv2.rectangle(canvas, (left, top), (right, bottom), color, 2)
        if max(abs(right - left), abs(bottom - top)) < MARK_PX:
            cv2.circle(canvas, ((left + right) // 2, (top + bottom) // 2), 2 * MARK_PX, color, 2)
    done, data = cv2.imencode('.jpg', canvas, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes() if done else b''
