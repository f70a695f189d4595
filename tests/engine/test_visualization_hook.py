from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.visualization import Visualizer
from PIL import Image

from ddetr.engine import DetVisualizationHook
from ddetr.structures import DetDataSample
from ddetr.utils import InputError
from ddetr.visualization import DetLocalVisualizer


class _Runner:
    """The attributes of a Runner that the hook reads."""

    iter = 3
    _train_loop = None

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


def test_pictures_of_a_test_have_the_images_names(tmp_path):
    """Images of one name in several folders, and of several formats, do not replace each other, nor the originals."""
    names = ['a/x.jpg', 'b/x.jpg', 'b/x.png', 'b/x.gif']
    for name in names:
        (tmp_path / 'data' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / 'data' / name)
    paths = [str(tmp_path / 'data' / name) for name in names]
    runner = _Runner({'type': 'LoadImageFromFile'})
    runner.test_dataloader = SimpleNamespace(dataset=_Images(paths))
    DetLocalVisualizer.get_instance('hook of names')
    hook = DetVisualizationHook(draw=True, test_out_dir=str(tmp_path / 'out'))
    samples = [DetDataSample(metainfo={'img_path': path, 'ori_shape': (60, 80)}) for path in paths]
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, outputs=samples[:3])
    written = {str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*.*')}
    assert written == {'a/x.jpg', 'b/x.jpg', 'b/x.png'}
    assert hook._test_picture(paths[3]) == tmp_path / 'out/b/x.gif.png'
    hook.test_out_dir = str(tmp_path / 'data')
    with pytest.raises(InputError, match=r'a/x\.jpg would overwrite the input file'):
        hook.after_test_iter(runner, 0, outputs=samples[:1])


class _Images(list):
    """A dataset of images' paths."""

    def get_data_info(self, index):
        return {'img_path': self[index]}
