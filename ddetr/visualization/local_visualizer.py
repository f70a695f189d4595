"""Pictures of boxes: ground truth, detections, or both side by side."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer

from ddetr.registry import VISUALIZERS
from ddetr.structures import DetDataSample
from ddetr.utils.files import write_atomically

MIN_SIDE_PX = 480  # smaller pictures are enlarged before drawing, or the class names would cover them
GOLDEN_RATIO = 0.618034


@VISUALIZERS.register_module()
class DetLocalVisualizer(Visualizer):
    """mmengine's Visualizer for boxes with class names and scores.

    Class names and colours come from `dataset_meta`: its `classes`, and its `palette` of (r, g, b) if it has one.

    Args:
        name: under which the process finds this instance.
        line_width: of the boxes, in pixels; by the picture's size if None.
        alpha: of the boxes' lines, 1 is opaque.
        bbox_color: one (r, g, b) for all classes, instead of the palette's.
        text_color: (r, g, b) of the labels.
        **kwargs: of mmengine's Visualizer.
    """

    def __init__(
        self,
        name: str = 'visualizer',  # mmengine's manager of instances looks for this parameter
        line_width: float | None = None,
        alpha: float = 0.9,
        bbox_color: tuple[int, int, int] | None = None,
        text_color: tuple[int, int, int] = (255, 255, 255),
        **kwargs,
    ) -> None:
        super().__init__(name=name, **kwargs)
        self.line_width, self.alpha = line_width, alpha
        self.bbox_color, self.text_color = bbox_color, text_color

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
        pictures = []
        if draw_gt and data_sample is not None and 'gt_instances' in data_sample:
            truth = data_sample.gt_instances.cpu().clone()
            truth.bboxes = data_sample.to_original(truth.bboxes)
            pictures.append(self.draw_instances(image, truth.numpy()))
        if draw_pred and data_sample is not None and 'pred_instances' in data_sample:
            found = data_sample.pred_instances.cpu().numpy()
            pictures.append(self.draw_instances(image, found[found.scores >= pred_score_thr]))
        picture = np.concatenate(pictures, axis=1) if pictures else image
        self.set_image(picture)  # so that get_image() gives what was drawn last
        if show:
            self.show(picture, win_name=name, wait_time=wait_time)
        if out_file is not None:
            self.write(picture, out_file)
        else:
            self.add_image(name, picture, step)

    @staticmethod
    def write(picture: np.ndarray, path: str | Path) -> None:
        """Write an (H, W, 3) RGB picture in the format of the file name's suffix, whole or not at all."""
        encoded, data = cv2.imencode(Path(path).suffix, picture[..., ::-1])
        assert encoded, path
        write_atomically(path, lambda unfinished: unfinished.write_bytes(data.tobytes()))

    def draw_instances(self, image: np.ndarray, instances: InstanceData) -> np.ndarray:
        """The (H, W, 3) RGB uint8 image, enlarged if small, with its boxes.

        `instances` are numpy arrays: `bboxes` (N, 4) x1 y1 x2 y2 in pixels of the image, `labels` (N,) and, for
        detections, `scores` (N,).
        """
        scale = max(1.0, MIN_SIDE_PX / min(image.shape[:2]))
        if scale > 1:
            image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        self.set_image(np.ascontiguousarray(image))
        size = (image.shape[0] * image.shape[1]) ** 0.5
        # the worst first, so that the best stay on top
        order = np.argsort(instances.scores) if 'scores' in instances else np.arange(len(instances))
        instances = instances[order]
        if len(instances) == 0:
            return image
        boxes_xyxy_px = instances.bboxes * scale
        colors = [self._color(int(label)) for label in instances.labels]
        line_width = self.line_width if self.line_width is not None else max(1.5, size / 300)
        self.draw_bboxes(boxes_xyxy_px, edge_colors=colors, line_widths=line_width, alpha=self.alpha)
        font_size = max(8, round(size / 75))
        # inside the picture, for boxes that begin at its upper edge
        positions = np.maximum(boxes_xyxy_px[:, :2], [-np.inf, 1.6 * font_size])
        style = {'alpha': 0.8, 'pad': 1.0, 'edgecolor': 'none'}
        self.draw_texts(
            self._texts(instances),
            positions,
            font_sizes=font_size,
            colors=self.text_color,
            vertical_alignments='bottom',
            bboxes=[{'facecolor': tuple(c / 255 for c in color), **style} for color in colors],
        )
        return self.get_image()

    def _texts(self, instances: InstanceData) -> list[str]:
        classes: Sequence[str] = (self.dataset_meta or {}).get('classes') or ()
        texts = [classes[label] if label < len(classes) else f'class {label}' for label in instances.labels]
        if 'scores' in instances:
            texts = [f'{text} {100 * score:.0f}' for text, score in zip(texts, instances.scores, strict=True)]
        return texts

    def _color(self, label: int) -> tuple[int, int, int]:
        if self.bbox_color is not None:
            return self.bbox_color
        palette = (self.dataset_meta or {}).get('palette')
        if palette is not None and label < len(palette):
            return tuple(palette[label])
        # steps of the golden ratio around the colour wheel: neighbouring labels differ most
        red, green, blue = colorsys.hsv_to_rgb((label * GOLDEN_RATIO) % 1, 0.85, 0.8)
        return round(255 * red), round(255 * green), round(255 * blue)
