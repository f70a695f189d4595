"""Pictures of boxes: ground truth, detections, or both side by side."""

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
        name: Under which the process finds this instance.
        line_width: Of the boxes, in pixels; None: by the picture's size.
        alpha: Opacity of the boxes' lines, 0 to 1.
        bbox_color: One (r, g, b) for all classes, instead of the palette's.
        text_color: (r, g, b) of the labels' text; None: black or white, whichever is legible on the label's colour.
        fill: Opacity of the boxes' area, 0 to 1; 0 leaves them empty.
        font_size: Of the labels, in pixels; None: by the picture's size.
        font_file: TrueType or OpenType font, for scripts that DejaVu Sans lacks, such as Chinese.
        **kwargs: Of mmengine's Visualizer.
    """

    def __init__(
        self,
        name: str = 'visualizer',  # mmengine's manager of instances looks for this parameter
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
        """Draw one image's boxes on the original image, ground truth on the left if both are there.

        Args:
            name: of the picture, for windows and backends.
            image: the original image, (H, W, 3) RGB uint8.
            data_sample: its `gt_instances`, which are mapped to the original image, and `pred_instances`.
            draw_gt, draw_pred: draw the ground truth and the detections, if there are any.
            show: open a window for `wait_time` seconds, 0 for until a key is pressed.
            wait_time: see `show`.
            pred_score_thr: detections under this score are left out.
            out_file: write the picture here; otherwise it goes to the backends.
            step: of the training, for the backends.
        """
        thr = pred_score_thr if draw_pred else None
        picture = image if data_sample is None else self.draw_sides(image, data_sample, thr, draw_gt)
        self.set_image(picture)  # so that get_image() gives what was drawn last
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
        """Ground truth and, unless `score_thr` is None, detections side by side; see `draw_instances`."""
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
        """Write an (H, W, 3) RGB picture in the format of the file name's suffix, whole or not at all."""
        options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]  # other formats ignore it
        encoded, data = cv2.imencode(Path(path).suffix, picture[..., ::-1], options)
        assert encoded, path
        write_atomically(path, lambda unfinished: unfinished.write_bytes(data.tobytes()))

    def draw_instances(
        self, image: np.ndarray, instances: InstanceData, longest_px: int | None = None
    ) -> np.ndarray:
        """The (H, W, 3) RGB uint8 image, enlarged if small, with its boxes.

        Args:
            image: (H, W, 3) RGB uint8; it stays as it is.
            instances: As numpy arrays: `bboxes` (N, 4) x1 y1 x2 y2 in pixels of the image, `labels` (N,) and, for
                detections, `scores` (N,).
            longest_px: The picture's longest side is at most this; the image is shrunk before it is drawn on.
        """
        scale = _scale(image, longest_px)
        if scale != 1:
            how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=how)
        boxes = np.asarray(instances.bboxes, dtype=float).reshape(-1, 4) * scale
        if 'scores' in instances:  # the best last, on top
            order = np.argsort(instances.scores, kind='stable')
        else:  # the smallest last
            order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind='stable')
        labels = [int(instances.labels[i]) for i in order]
        scores = [float(instances.scores[i]) for i in order] if 'scores' in instances else [None] * len(order)
        meta = self.dataset_meta or {}
        names = [class_name(meta.get('classes') or (), label) for label in labels]
        texts = [label_text(name, score) for name, score in zip(names, scores, strict=True)]
        colors = [self.bbox_color or class_color(label, meta.get('palette')) for label in labels]
        return draw_boxes(image, boxes[order], texts, colors, self.style)


def _scale(image: np.ndarray, longest_px: int | None) -> float:
    """Enlarges small images, or the class names would cover them."""
    short, long = sorted(image.shape[:2])
    scale = max(1.0, min(MIN_SIDE_PX / short, MAX_ENLARGED_PX / long))
    return scale if longest_px is None else min(scale, longest_px / long)
