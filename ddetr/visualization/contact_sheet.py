"""Contact sheets: many small pictures with boxes on few sheets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmengine.structures import InstanceData

from .local_visualizer import DetLocalVisualizer

COLUMNS, ROWS = 4, 3
SIDE_PX = 400  # of the square cell of a picture
GAP_PX = 6


class ContactSheet:
    """Collect images with their boxes, and write them to sheets of 4 x 3 pictures.

    Args:
        classes: Class names by label.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.pictures: list[np.ndarray] = []
        self.visualizer = DetLocalVisualizer('contact_sheet')
        self.visualizer.dataset_meta = {'classes': classes}

    def add(self, image: np.ndarray, boxes_xyxy_px: np.ndarray, labels: np.ndarray) -> InstanceData:
        """Draw an (H, W, 3) RGB uint8 image with boxes (N, 4) and labels (N,); return the boxes inside the image."""
        height, width = image.shape[:2]
        boxes = np.asarray(boxes_xyxy_px, dtype=float).clip(0, [width, height, width, height])
        truth = InstanceData(bboxes=boxes, labels=np.asarray(labels))
        picture = self.visualizer.draw_instances(np.ascontiguousarray(image), truth, longest_px=SIDE_PX)
        self.pictures.append(_squared(picture))
        return truth

    def write(self, folder: Path) -> list[str]:
        """Write `sheet_00.jpg` etc. to `folder`; return their names."""
        names = []
        each = COLUMNS * ROWS
        for start in range(0, len(self.pictures), each):
            part = self.pictures[start : start + each]
            blank = [np.full_like(part[0], 255)] * (-len(part) % COLUMNS)
            squares = [*part, *blank]
            rows = [np.concatenate(squares[i : i + COLUMNS], 1) for i in range(0, len(squares), COLUMNS)]
            names.append(f'sheet_{start // each:02d}.jpg')
            DetLocalVisualizer.write(np.concatenate(rows), folder / names[-1])
        return names


def _squared(picture: np.ndarray) -> np.ndarray:
    """Pad a picture to a square with white."""
    square = np.full((SIDE_PX + GAP_PX, SIDE_PX + GAP_PX, 3), 255, dtype=np.uint8)
    square[: picture.shape[0], : picture.shape[1]] = picture
    return square
