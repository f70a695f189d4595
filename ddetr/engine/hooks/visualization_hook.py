"""Drawing detections while a model is validated or tested."""

from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from ddetr.engine.config import dataset_of
from ddetr.registry import HOOKS, TRANSFORMS
from ddetr.structures import DetDataSample


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draw ground truth and detections of some images side by side.

    Args:
        draw: off by default: drawing costs time.
        interval: draw every so many images of validation; testing draws all of them.
        score_thr: detections under this score are not drawn.
        show: open a window for each drawing.
        wait_time: seconds that the window stays.
        test_out_dir: the folder of the drawings of a test, `tools/test.py --show-dir`. Without one, and in
            validation, they go to the visualizer's backends.
        backend_args: accepted for MMDetection's configs; images are read as the dataset's pipeline reads them.
    """

    def __init__(
        self,
        draw: bool = False,
        interval: int = 50,
        score_thr: float = 0.3,
        show: bool = False,
        wait_time: float = 0.0,
        test_out_dir: str | None = None,
        backend_args: dict | None = None,
    ) -> None:
        self.draw = draw
        self.interval = interval
        self.score_thr = score_thr
        self.show = show
        self.wait_time = wait_time
        self.test_out_dir = test_out_dir
        self._visualizer: Visualizer = Visualizer.get_current_instance()

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the first image of every `interval`-th batch."""
        if self.draw and outputs and batch_idx % self.interval == 0:
            self._draw(runner, outputs[0], 'val', runner.iter, None)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw every image, under its own name."""
        for sample in (outputs or []) if self.draw else []:
            name = Path(sample.img_path)
            # jpg and png of one name must not overwrite each other: the picture keeps both suffixes
            target = Path(self.test_out_dir, f'{name.name}.png') if self.test_out_dir else None
            self._draw(runner, sample, f'test/{name.stem}', batch_idx, target)

    def _draw(self, runner: Runner, sample: DetDataSample, name: str, step: int, target: Path | None) -> None:
        height, width = sample.ori_shape
        # the pipeline's loader: it turns the image by its EXIF tag exactly where the boxes are turned
        loader = runner.cfg.get(f'{name.split("/")[0]}_dataloader') or {}
        load = TRANSFORMS.build(dataset_of(loader).get('pipeline', [{'type': 'LoadImageFromFile'}])[0])
        image = load({'img_path': sample.img_path, 'height': height, 'width': width})['img'].astype(np.uint8)
        self._visualizer.add_datasample(
            name,
            image[..., ::-1],  # BGR -> RGB
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            pred_score_thr=self.score_thr,
            out_file=str(target) if target else None,
            step=step,
        )
