import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.visualization import Visualizer
from PIL import Image

from ddetr.engine import DetVisualizationHook
from ddetr.structures import DetDataSample


class _Runner:
    """The attributes of a Runner that the hook reads."""

    iter = 3

    def __init__(self, loader_step):
        dataset = {'type': 'RepeatDataset', 'dataset': {'pipeline': [loader_step]}}
        self.cfg = Config({f'{split}_dataloader': {'dataset': dataset} for split in ('val', 'test')})


@pytest.mark.parametrize('split', ['val', 'test'])
def test_images_are_read_as_the_dataset_reads_them(tmp_path, monkeypatch, split):
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down, which keeps the size
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
    Visualizer.get_instance('hook')
    hook = DetVisualizationHook(draw=True, interval=1)
    drawn = []
    monkeypatch.setattr(hook._visualizer, 'add_datasample', lambda name, image, **kwargs: drawn.append(image))
    sample = DetDataSample(metainfo={'img_path': str(tmp_path / 'a.png'), 'ori_shape': (60, 80)})
    draw = getattr(hook, f'after_{split}_iter')

    draw(_Runner({'type': 'LoadImageFromFile'}), 0, outputs=[sample])
    draw(
        _Runner({'type': 'mmdet.LoadImageFromFile', 'color_type': 'color_ignore_orientation'}),
        0,
        outputs=[sample],
    )

    np.testing.assert_array_equal(drawn[0], cv2.rotate(pixels, cv2.ROTATE_180))
    np.testing.assert_array_equal(drawn[1], pixels)
