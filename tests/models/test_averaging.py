"""The average against its closed form."""

import math

import pytest
import torch
from torch import nn

from ddetr.models import ExpMomentumEMA
from ddetr.registry import MODELS
from ddetr.utils import ConfigError


def trained(values, **options):
    """The average of a model whose single weight takes these values, after each update."""
    model = nn.Linear(1, 1, bias=False).double()
    average = MODELS.build({'type': 'ExpMomentumEMA', **options}, default_args={'model': model})
    found = []
    for value in values:
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        found.append(average.module.weight.item())
    return found


def test_each_update_enters_with_the_share_of_its_time():
    found = trained([3.0, 5.0, -1.0, 2.0], momentum=0.1, gamma=4)
    share = [0.1 + 0.9 * math.exp(-(1 + t) / 4) for t in range(4)]
    expected = [3.0]  # the first takes the place of the average
    for value, s in zip([5.0, -1.0, 2.0], share[1:], strict=True):
        expected.append((1 - s) * expected[-1] + s * value)
    assert found == pytest.approx(expected, rel=1e-12)


def test_late_updates_enter_with_the_momentum_alone():
    found = trained([1.0] + [0.0] * 300, momentum=0.05, gamma=10)
    assert found[300] / found[299] == pytest.approx(0.95, rel=1e-9)


def test_buffers_are_copied():
    model = nn.BatchNorm1d(2)
    average = ExpMomentumEMA(model, gamma=1)
    for _ in range(3):
        model(torch.randn(4, 2))
        average.update_parameters(model)
    assert torch.equal(average.module.running_mean, model.running_mean)
    assert average.module.num_batches_tracked == 3


def test_gamma_that_would_divide_by_zero_raises():
    with pytest.raises(ConfigError, match='gamma=0 must be positive'):
        ExpMomentumEMA(nn.Linear(1, 1), gamma=0)
