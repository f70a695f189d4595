"""Config examples of the docs, run as a reader would use them."""

import re

import torch

from ddetr.analysis.batches import random_batch
from ddetr.analysis.building import build_detector
from ddetr.engine.config import check_config, load_config
from ddetr.registry import MODELS
from tests.conftest import ROOT


def example_of(page: str, words: str) -> str:
    """The Python block of a page that has these words."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if words in block]
    return block


def test_custom_backbone_works_with_our_detector(tmp_path):
    config = tmp_path / 'mine.py'
    config.write_text(example_of('backbones.md', "['my_backbone']").replace("'configs/", f"'{ROOT}/configs/"))
    (tmp_path / 'my_backbone.py').write_text(example_of('backbones.md', '# my_backbone.py'))
    model = build_detector(load_config(config))
    assert model.neck.in_channels == [32, 64]
    batch = model.data_preprocessor(random_batch(2, (64, 96), 6), training=True)
    loss, _ = model.parse_losses(model(**batch, mode='loss'))
    loss.backward()
    assert torch.isfinite(loss)


def test_config_check_accepts_a_custom_average(tmp_path):
    config = tmp_path / 'mine.py'
    base = ROOT / 'configs/quickstart/deformable-detr-refine-twostage_shapes.py'
    config.write_text(f'_base_ = {str(base)!r}\n' + example_of('finetuning.md', 'MyAverage'))
    (tmp_path / 'my_average.py').write_text(
        'from mmengine.model import ExponentialMovingAverage\n'
        'from ddetr.registry import MODELS\n\n\n'
        '@MODELS.register_module()\n'
        'class MyAverage(ExponentialMovingAverage):\n'
        '    """An average of a reader."""\n'
    )
    check_config(load_config(config))
    assert MODELS.get('MyAverage') is not None
