"""Draw detections during validation and testing."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.visualization import Visualizer

from ddetr.engine.config import dataset_of
from ddetr.registry import HOOKS, TRANSFORMS
from ddetr.structures import DetDataSample
from ddetr.utils.files import picture_name, require_other_file
from ddetr.visualization import DetLocalVisualizer
from ddetr.visualization.training_page import PICTURES

VAL_PICTURE_PX = 480  # longer side of each half (ground truth, detections)


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draw ground truth and detections side by side.

    After each evaluation during training, rank 0 writes the same few images to WORK_DIR/val_pictures/epoch_N (or
    iter_N). Choosing them uses no random numbers, so training is not affected.

    Args:
        draw: Whether to draw all test images and, in validation, those selected by `interval`, for the visualizer's
            backends.
        interval: Number of batches between drawn validation images; the first image of a batch is drawn.
        score_thr: Minimum score of drawn detections.
        show: Whether to open a window for each drawing.
        wait_time: Time to show the window, in seconds.
        test_out_dir: Output folder of test drawings (`tools/test.py --show-dir`). None sends them to the visualizer's
            backends.
        backend_args: Accepted for compatibility with MMDetection configs. Images are read as in the dataset pipeline.
        val_images: Number of images, spread over the dataset, to draw at each evaluation during training; 0 for none.
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
        val_images: int = 4,
    ) -> None:
        self.draw = draw
        self.interval = interval
        self.score_thr = score_thr
        self.show = show
        self.wait_time = wait_time
        self.test_out_dir = test_out_dir
        self.val_images = val_images
        self._image_root: Path | None = None
        self._visualizer: Any = Visualizer.get_current_instance()

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw the first image of some batches."""
        if self.draw and outputs and batch_idx % self.interval == 0:
            self._draw(runner, outputs[0], 'val', runner.iter, None)
        training = not isinstance(runner._train_loop, (dict, type(None)))
        can_draw = isinstance(self._visualizer, DetLocalVisualizer) and is_main_process()
        if not (self.val_images and outputs and training and can_draw):
            return
        batches = len(runner.val_dataloader)
        count = min(self.val_images, batches)
        chosen = [number * batches // count for number in range(count)]
        if batch_idx in chosen:
            self._write_val_picture(runner, outputs[0], chosen.index(batch_idx))

    def _write_val_picture(self, runner: Runner, sample: DetDataSample, number: int) -> None:
        """Write `val_pictures/epoch_3/0_NAME.jpg`."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        evaluation = f'epoch_{runner.epoch}' if by_epoch else f'iter_{runner.iter}'
        out = Path(runner.work_dir, PICTURES, evaluation, f'{number}_{Path(sample.img_path).stem}.jpg')
        image = _read(runner, sample, 'val')
        picture = self._visualizer.draw_sides(image, sample, self.score_thr, longest_px=VAL_PICTURE_PX)
        try:
            self._visualizer.write(picture, out, jpeg_quality=82)
        except OSError as error:  # a full disk must not end the training
            print_log(f'image {out} cannot be written: {error}.', 'current', logging.WARNING)

    def before_test(self, runner: Runner) -> None:
        """Find the common folder of all images. Drawings keep the subfolders, so that none overwrites another."""
        dataset: Any = runner.test_dataloader.dataset
        if self.draw and self.test_out_dir and hasattr(dataset, 'get_data_info'):
            paths = [dataset.get_data_info(index)['img_path'] for index in range(len(dataset))]
            self._image_root = Path(os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in paths]))

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Draw every image under its own name."""
        for sample in (outputs or []) if self.draw else []:
            target = self._test_picture(sample.img_path) if self.test_out_dir else None
            self._draw(runner, sample, f'test/{Path(sample.img_path).stem}', batch_idx, target)

    def _test_picture(self, img_path: str) -> Path:
        path, root = Path(os.path.abspath(img_path)), self._image_root
        name = path.relative_to(root) if root is not None and path.is_relative_to(root) else path.name
        target = Path(str(self.test_out_dir), picture_name(str(name)))
        require_other_file(target, img_path)
        return target

    def _draw(self, runner: Runner, sample: DetDataSample, name: str, step: int, target: Path | None) -> None:
        self._visualizer.add_datasample(
            name,
            _read(runner, sample, name.split('/')[0]),
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            pred_score_thr=self.score_thr,
            out_file=str(target) if target else None,
            step=step,
        )


def _read(runner: Runner, sample: DetDataSample, split: str) -> np.ndarray:
    """Original image of a sample, (H, W, 3) RGB uint8."""
    height, width = sample.ori_shape
    # use the pipeline's loader, so that EXIF orientation is handled in the same way as for the boxes
    loader = runner.cfg.get(f'{split}_dataloader') or {}
    load = TRANSFORMS.build(dataset_of(loader).get('pipeline', [{'type': 'LoadImageFromFile'}])[0])
    image = load({'img_path': sample.img_path, 'height': height, 'width': width})['img'].astype(np.uint8)
    return image[..., ::-1]  # BGR -> RGB
