"""Inference and drawing for the web demo, independent of HTTP."""

import io
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import PIL.Image
import torch
from torchvision.ops import box_iou

from ddetr.analysis.sampling import ImageLook, record_sampling
from ddetr.apis import DetInferencer
from ddetr.apis.inference import load_image, prepare_image
from ddetr.apis.results import Selection, detection_rows
from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError
from ddetr.visualization.sampling_points import Panel, draw_panels, panels_of

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')  # names in Pillow
FIGURE_SIDE_PX = 1600  # maximum longest side of images in figures

PIL.Image.init()  # loads the formats that `open(formats=...)` needs


class Limits(NamedTuple):
    """Limits of an upload."""

    upload_bytes: int
    pixels: int


class Timings(NamedTuple):
    """Processing times of an image in seconds."""

    preprocess: float  # decode, resize, normalise, copy to the device
    inference: float  # forward pass and selection of detections
    postprocess: float  # conversion of detections and decoder boxes to image pixels, on the CPU


class Detected(NamedTuple):
    """One image with all its detections."""

    name: str
    image: np.ndarray  # (H, W, 3) BGR uint8
    look: ImageLook
    timings: Timings

    @property
    def nbytes(self) -> int:
        """Approximate memory use in bytes."""
        points = sum(call.locations.nbytes + call.weights.nbytes for call in self.look.calls)
        boxes = self.look.boxes_xyxy_px
        return self.image.nbytes + points + self.look.pad_mask.nbytes + (0 if boxes is None else boxes.nbytes)


class PointsView(NamedTuple):
    """Selection of sampling points to draw for a detection."""

    split: str = 'layers'  # one panel per entry of: 'layers', 'heads', 'levels'
    layer: int | None = None  # from 1; None for all layers, or for the last one with heads and levels
    zoom: bool = False  # show only the region around the points


def check_image(data: bytes, limits: Limits) -> tuple[int, int]:
    """Return width and height of an encoded image, from its header alone.

    Raises:
        InputError: The data is empty, not in a supported image format, or exceeds the limits.
    """
    check_upload_size(len(data), limits)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError:
        raise InputError(
            f'The image is far larger than the limit of {limits.pixels / 1e6:g} megapixels.'
        ) from None
    except (OSError, ValueError, SyntaxError, struct.error):
        raise InputError('This is not an image in JPEG, PNG, WebP, BMP or TIFF format.') from None
    if width * height > limits.pixels:
        raise InputError(
            f'The image has {width} x {height} = {width * height / 1e6:.3g} megapixels; at most '
            f'{limits.pixels / 1e6:g} are allowed.'
        )
    return width, height


def check_upload_size(size: int, limits: Limits) -> None:
    """Raise an InputError if a file is empty or exceeds the limit."""
    if size == 0:
        raise InputError('The file is empty.')
    if size > limits.upload_bytes:
        raise InputError(f'The file exceeds the limit of {limits.upload_bytes / 1e6:g} MB.')


class Demo:
    """A detector and the views of its results that the page shows.

    All methods are thread-safe; figures are drawn one at a time, since Matplotlib is not thread-safe.
    """

    def __init__(self, detector: DetInferencer) -> None:
        self.detector, self.model = detector, detector.model
        self.classes: Sequence[str] = detector.classes
        self._drawing = threading.Lock()

    def detect(self, name: str, data: bytes) -> Detected:
        """Run the detector on an encoded image and record the decoder's sampling points.

        Raises:
            InputError: The image cannot be decoded, or the detector does not support it.
        """
        start = time.perf_counter()
        image = self._decode(name, data)
        batch = self.model.data_preprocessor(prepare_image(self.model, image), False)
        self._synchronise()
        ready = time.perf_counter()
        with torch.no_grad(), record_sampling(self.model, encoder=False) as record:
            sample: DetDataSample = self.model(**batch, mode='predict')[0]
        self._synchronise()
        found = time.perf_counter()
        look = ImageLook.of(sample, record, batch).for_detections()
        timings = Timings(ready - start, found - ready, time.perf_counter() - found)
        return Detected(name, image, look, timings)

    def rows(self, detected: Detected, selection: Selection) -> list[dict[str, Any]]:
        """Return the selected detections in the format of `detection_rows`, best first."""
        return detection_rows(selection(detected.look.sample), self.classes)

    def picture(self, detected: Detected, selection: Selection, width: int | None = None) -> np.ndarray:
        """Draw the selected detections, at most `width` pixels wide; (H, W, 3) BGR uint8."""
        found = selection(detected.look.sample).pred_instances.numpy()
        height, own_width = detected.image.shape[:2]
        longest = None if width is None else round(width * max(height, own_width) / own_width)
        return self.detector.visualizer.draw_instances(detected.image[..., ::-1], found, longest)[..., ::-1]

    def refinement(self, detected: Detected, index: int) -> list[dict[str, Any]]:
        """Return a detection's box after each decoder layer: `bbox` in pixels and `iou` with the final box.

        The list is empty for detectors whose layers predict no boxes.
        """
        look = detected.look
        if look.boxes_xyxy_px is None:
            return []
        boxes = look.boxes_xyxy_px[:, look.query_of(index)]  # (N, 4)
        ious = box_iou(boxes, boxes[-1:])[:, 0]
        return [{'bbox': box, 'iou': iou} for box, iou in zip(boxes.tolist(), ious.tolist(), strict=True)]

    def num_layers(self, detected: Detected) -> int:
        """Return the number of decoder layers with known sampling points."""
        return len(detected.look.calls)

    def points(self, detected: Detected, index: int, view: PointsView) -> bytes:
        """Return a PNG of the sampling points of a detection's query, with the box predicted by each layer.

        Raises:
            InputError: The detector has no sampling points, or the detection or layer does not exist.
        """
        look = detected.look
        if not look.calls:
            raise InputError(
                f'{type(self.model).__name__} has no decoder with deformable attention, '
                'so there are no sampling points to show.'
            )
        panels = self._panels(look, index, view)
        scale = min(1.0, FIGURE_SIDE_PX / max(detected.image.shape[:2]))
        image = cv2.resize(detected.image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        with self._drawing, tempfile.TemporaryDirectory() as folder:
            panels = [_scaled(panel, scale) for panel in panels]
            path = Path(folder, 'points.png')
            draw_panels(image[..., ::-1], [panels], path, [self._title(look, index)], view.zoom)
            return path.read_bytes()

    def _panels(self, look: ImageLook, index: int, view: PointsView) -> list[Panel]:
        points, boxes = look.detection(index), look.sample.pred_instances.bboxes[[index]].numpy()
        if look.boxes_xyxy_px is not None:
            boxes = look.boxes_xyxy_px[:, look.query_of(index)].numpy()  # (N, 4)
        boxes = [boxes[min(i, len(boxes) - 1)] for i in range(len(points))]
        if view.layer is not None and not 1 <= view.layer <= len(points):
            raise InputError(
                f'Layer {view.layer} does not exist: there are {len(points)} layers, numbered from 1.'
            )
        if view.split == 'layers':
            panels = panels_of(points, 'layers', None)
            panels = [panel._replace(box_xyxy_px=box) for panel, box in zip(panels, boxes, strict=True)]
            return panels if view.layer is None else [panels[view.layer - 1]]
        last = len(points) if view.layer is None else view.layer
        return panels_of(points[last - 1 : last], view.split, boxes[last - 1])

    def _title(self, look: ImageLook, index: int) -> str:
        found = look.sample.pred_instances[index]
        return f'{self.classes[int(found.labels)]} {100 * float(found.scores):.0f}%'

    def _decode(self, name: str, data: bytes) -> np.ndarray:
        """Decode an image like a file, with the config's own pipeline."""
        with tempfile.NamedTemporaryFile(prefix='ddetr-demo-') as file:
            file.write(data)
            file.flush()
            try:
                return load_image(self.model, file.name)
            except InputError as error:
                raise InputError(str(error).replace(file.name, name)) from None

    def _synchronise(self) -> None:
        if next(self.model.parameters()).device.type == 'cuda':
            torch.cuda.synchronize()


def _scaled(panel: Panel, scale: float) -> Panel:
    """Return the panel for an image that was resized by `scale`."""
    reference, box = (None if v is None else v * scale for v in (panel.reference_px, panel.box_xyxy_px))
    return panel._replace(xy_px=panel.xy_px * scale, reference_px=reference, box_xyxy_px=box)
