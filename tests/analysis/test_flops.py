"""Parameters and multiply-adds compared with published figures, torchvision, and PyTorch's FLOP counter."""

import functools
import json

import numpy as np
import pytest
import torch
from mmcv.transforms import Resize
from mmengine.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ResNet50_Weights

from ddetr.analysis.batches import random_batch
from ddetr.analysis.flops import (
    build_for_counting,
    count_macs,
    mean_macs,
    sizes_when_tested,
    trainable_parameters,
)
from ddetr.analysis.paper_table import PUBLISHED
from ddetr.datasets.coco_format import read_coco
from ddetr.engine.config import load_config
from ddetr.models.backbones import ResNet
from ddetr.models.layers import MultiScaleDeformableAttention
from ddetr.utils import ConfigError, InputError
from tests.conftest import ROOT

TINY = ROOT / 'tests/configs/tiny_shapes.py'
# rows that differ in schedule only are counted once
DISTINCT = list({(row.name, row.flops_g): row for row in PUBLISHED}.values())


@pytest.fixture(scope='session')
def first_of_val2017(tmp_path_factory):
    """An annotation file with the sizes of the first 100 images of COCO's val2017."""
    sizes = json.loads((ROOT / 'tests/analysis/val2017_sizes.json').read_text())
    images = [
        {'id': i, 'file_name': f'{i}.jpg', 'width': width, 'height': height}
        for i, (width, height) in enumerate(sizes)
    ]
    path = tmp_path_factory.mktemp('val2017') / 'images.json'
    path.write_text(json.dumps({'images': images, 'categories': []}))
    return str(path)


def _path_of(row):
    (path,) = (ROOT / 'configs').rglob(f'{row.config}.py')
    return path


@functools.cache
def _model(config):
    return build_for_counting(load_config(config))


@pytest.mark.parametrize('row', PUBLISHED, ids=lambda row: row.config)
def test_trainable_parameters_round_to_the_published_millions(row):
    with torch.device('meta'):
        model = build_for_counting(load_config(_path_of(row)))
    assert round(trainable_parameters(model) / 1e6) == row.params_m


@pytest.mark.parametrize('row', DISTINCT, ids=lambda row: row.config)
def test_flops_are_within_3_percent_of_the_published(row, first_of_val2017):
    cfg = load_config(_path_of(row))
    model = build_for_counting(cfg)
    sizes = sizes_when_tested(cfg, first_of_val2017, 100)
    # Attention makes them a parabola in the number of pixels, but for rounding; so three sizes do for the 42 that
    # there are, and `tools/analysis/model_table.py` counts every one.
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    areas = [h * w / 1e6 for h, w in (by_area[0], by_area[len(by_area) // 2], by_area[-1])]
    macs = [count_macs(model, size).total for size in (by_area[0], by_area[len(by_area) // 2], by_area[-1])]
    parabola = np.polyfit(areas, macs, 2)
    mean = sum(np.polyval(parabola, h * w / 1e6) * times for (h, w), times in sizes.items()) / 100
    assert mean / 1e9 == pytest.approx(row.flops_g, rel=0.03)


def test_counts_torchvisions_resnet50():
    class OnlyBackbone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = ResNet(50)
            self.data_preprocessor = Config({'pad_size_divisor': 1})

        def forward(self, images, mode, pad_mask):
            return self.backbone(images)

    macs = count_macs(OnlyBackbone().eval(), (224, 224))
    # torchvision's figure is rounded to 1e6 and has the classifier's 2048 x 1000 weights in it
    published = ResNet50_Weights.IMAGENET1K_V1.meta['_ops'] * 1e9 - 2048 * 1000
    assert macs.total == pytest.approx(published, abs=0.6e6)
    assert macs.by_part == {'backbone': macs.total}


@pytest.mark.parametrize(
    'config',
    ['quickstart/faster-rcnn_shapes.py', 'quickstart/detr_shapes.py'],
)
def test_counts_equal_pytorchs_flop_counter_on_real_computation(config):
    model = _model(ROOT / 'configs' / config)
    batch = model.data_preprocessor(random_batch(1, (97, 130), 6))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch, mode='tensor')
    # the real forward may have fewer proposals to look at than `max_per_img`
    measured = count_macs(model, (97, 130)).by_part
    expected = {
        name: counter.get_flop_counts().get(f'{type(model).__name__}.{name}', {}) for name in measured
    }
    for name in measured.keys() - {'roi_head'}:
        assert measured[name] == sum(expected[name].values()) / 2, name


def test_counts_deformable_attention_with_its_sampling():
    model = _model(TINY)
    height, width = 96, 128
    batch = model.data_preprocessor(random_batch(1, (height, width), 6))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch, mode='tensor')
    tokens = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2
    channels, levels, points, queries = 32, 4, 4, 12
    numbers_read = (tokens + 2 * queries) * channels * levels * points  # one encoder, two decoder layers
    macs = count_macs(model, (height, width))
    assert macs.by_part['sampling'] == 5 * numbers_read
    assert macs.total == counter.get_total_flops() / 2 + 5 * numbers_read


@pytest.mark.parametrize(('points', 'samples'), [(4, 16), ([3, 6, 3, 1], 13)])
def test_sampling_of_the_papers_decoder_layer(points, samples):
    layer = MultiScaleDeformableAttention(256, num_points=points)
    assert layer.uncounted_macs(torch.zeros(2, 300, 256)) == 5 * 2 * 300 * 256 * samples


def test_counting_leaves_no_trace_in_the_model():
    model = _model(TINY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_macs(model, (64, 96))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_mean_weights_sizes_by_frequency():
    model = _model(TINY)
    small, large = count_macs(model, (64, 64)), count_macs(model, (64, 128))
    mean = mean_macs(model, {(64, 64): 3, (64, 128): 1})
    assert mean.total == pytest.approx((3 * small.total + large.total) / 4)
    assert mean.by_part['backbone'] == pytest.approx(
        (3 * small.by_part['backbone'] + large.by_part['backbone']) / 4
    )


def test_sizes_equal_those_of_the_test_pipeline(coco_root):
    ann_file = str(coco_root / 'annotations/instances_val2017.json')
    cfg = load_config(_path_of(PUBLISHED[0]))
    expected = {}
    for image in read_coco(ann_file)['images'][:20]:
        pixels = np.zeros((image['height'], image['width']), dtype=np.uint8)
        size = Resize(scale=(1333, 800), keep_ratio=True)({'img': pixels})['img'].shape
        expected[size] = expected.get(size, 0) + 1
    assert sizes_when_tested(cfg, ann_file, 20) == expected


def test_sizes_need_a_resize_and_images(tmp_path):
    cfg = load_config(TINY)
    empty = tmp_path / 'ann.json'
    empty.write_text('{"images": [], "categories": []}')
    with pytest.raises(InputError, match='lists no images'):
        sizes_when_tested(cfg, str(empty), 100)
    cfg.test_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}]
    with pytest.raises(ConfigError, match='no Resize'):
        sizes_when_tested(cfg, str(empty), 100)
