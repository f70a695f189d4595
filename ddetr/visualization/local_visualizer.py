"""Visualizer of boxes: ground truth, detections, or both side by side."""

from pathlib import Path

import cv2
import numpy as np
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

from ddetr.registry import VISUALIZERS
from ddetr.structures import DetDataSample
from ddetr.utils.files import write_atomically

from .boxes import BoxStyle, draw_boxes
from .colors import class_color
from .labels import class_name, label_text

MIN_SIDE_PX = 480  # pictures with a smaller side are enlarged to it,
MAX_ENLARGED_PX = 1600  # but not beyond this long a side


@VISUALIZERS.register_module()
class DetLocalVisualizer(Visualizer):
    """mmengine's Visualizer for boxes with class names and scores.

    Class names and colours come from `dataset_meta`: its `classes`, and its `palette` of (r, g, b) if it has one.

    Args:
        name: Name of the instance for mmengine's instance manager.
        line_width: Line width of boxes in pixels; None to choose it by image size.
        alpha: Opacity of lines, 0 to 1.
        bbox_color: Single colour (r, g, b) for all classes, instead of the palette.
        text_color: Text colour (r, g, b) of labels; None for black or white, whichever is legible on the label.
        fill: Opacity of the box area, 0 to 1; 0 for no fill.
        font_size: Font size of labels in pixels; None to choose it by image size.
        font_file: TrueType or OpenType font, for scripts that DejaVu Sans lacks, such as Chinese.
        **kwargs: Arguments of mmengine's Visualizer.
    """

    def __init__(
        self,
        name: str = 'visualizer',  # required by mmengine's instance manager
        line_width: float | None = None,
        alpha: float = 1.0,
        bbox_color: tuple[int, int, int] | None = None,
        text_color: tuple[int, int, int] | None = None,
        fill: float = 0.0,
        font_size: int | None = None,
        font_file: str | None = None,
        **kwargs,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.bbox_color = bbox_color
        self.style = BoxStyle(line_width, font_size, alpha, fill, text_color, font_file)

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        pred_score_thr: float = 0.3,
        out_file: str | None = None,
        step: int = 0,
    ) -> None:
        """Draw boxes on the original image; if both are drawn, ground truth is on the left, detections on the right.

        Args:
            name: Name of the picture for windows and backends.
            image: Original image, (H, W, 3) RGB uint8.
            data_sample: Sample with `gt_instances`, which are mapped to the original image, and `pred_instances`.
            draw_gt, draw_pred: Whether to draw the ground truth and the detections, if there are any.
            show: Open a window.
            wait_time: Seconds to show the window; 0 waits for a key.
            pred_score_thr: Minimum score of detections.
            out_file: File to write; by default the picture goes to the backends.
            step: Training step for the backends.
        """
        thr = pred_score_thr if draw_pred else None
        picture = image if data_sample is None else self.draw_sides(image, data_sample, thr, draw_gt)
        self.set_image(picture)  # so that get_image() returns the last picture
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            self.write(picture, out_file)
        else:
            self.add_image(name, picture, step)

    def draw_sides(
        self,
        image: np.ndarray,
        sample: DetDataSample,
        score_thr: float | None = 0.3,
        draw_gt: bool = True,
        longest_px: int | None = None,
    ) -> np.ndarray:
        """Draw ground truth and, unless `score_thr` is None, detections side by side; see `draw_instances`."""
        pictures = []
        if draw_gt and 'gt_instances' in sample:
            truth = sample.gt_instances.cpu().clone()
            truth.bboxes = sample.to_original(truth.bboxes)
            pictures.append(self.draw_instances(image, truth.numpy(), longest_px))
        if score_thr is not None and 'pred_instances' in sample:
            found = sample.pred_instances.cpu().numpy()
            pictures.append(self.draw_instances(image, found[found.scores >= score_thr], longest_px))
        return np.concatenate(pictures, axis=1) if pictures else image

    @staticmethod
    def write(picture: np.ndarray, path: str | Path, jpeg_quality: int = 95) -> None:
        """Write an (H, W, 3) RGB picture atomically, in the format of the file suffix."""
        options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]  # other formats ignore it
        encoded, data = cv2.imencode(Path(path).suffix, picture[..., ::-1], options)
        assert encoded, path
        write_atomically(path, lambda unfinished: unfinished.write_bytes(data.tobytes()))

    def draw_instances(
        self, image: np.ndarray, instances: InstanceData, longest_px: int | None = None
    ) -> np.ndarray:
        """Draw boxes on an image, enlarged if it is small; return (H, W, 3) RGB uint8.

        Args:
            image: Image, (H, W, 3) RGB uint8; not modified.
            instances: Numpy arrays `bboxes` (N, 4) x1 y1 x2 y2 in pixels of the image, `labels` (N,) and, for
                detections, `scores` (N,).
            longest_px: Maximum longest side of the picture; the image is shrunk before drawing.
        """
        scale = _scale(image, longest_px)
        if scale != 1:
            how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
        boxes = np.asarray(instances.bboxes, dtype=float).reshape(-1, 4) * scale
        if 'scores' in instances:  # best last, on top
            order = np.argsort(instances.scores, kind='stable')
        else:  # smallest last, on top
            order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind='stable')
        labels = [int(instances.labels[i]) for i in order]
        scores = [float(instances.scores[i]) for i in order] if 'scores' in instances else [None] * len(order)
        meta = self.dataset_meta or {}
        names = [class_name(meta.get('classes') or (), label) for label in labels]
        texts = [label_text(name, score) for name, score in zip(names, scores, strict=True)]
        colors = [self.bbox_color or class_color(label, meta.get('palette')) for label in labels]
        return draw_boxes(image, boxes[order], texts, colors, self.style)


def _scale(image: np.ndarray, longest_px: int | None) -> float:
    """Scale factor of the picture; small images are enlarged so that class names do not cover them."""
    short, long = sorted(image.shape[:2])
    scale = max(1.0, min(MIN_SIDE_PX / short, MAX_ENLARGED_PX / long))
    return scale if longest_px is None else min(scale, longest_px / long)
