"""Timing with a fake clock, and the effects of the measured steps."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch

from ddetr.analysis import speed
from ddetr.analysis.batches import random_batch
from ddetr.analysis.building import build_detector
from ddetr.analysis.limit import layer_calls, limit_step
from ddetr.analysis.speed import detection_step, device_name, measure, training_step
from ddetr.engine.config import load_config
from tests.conftest import ROOT

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def cfg():
    return load_config(ROOT / 'tests/configs/tiny_shapes.py')


def test_median_and_quartiles_without_the_warmup(monkeypatch):
    durations = [90.0, 80.0, 5.0, 1.0, 4.0, 2.0, 3.0, 70.0]  # the last for memory
    ticks = itertools.chain.from_iterable((100.0 * i, 100.0 * i + taken) for i, taken in enumerate(durations))
    monkeypatch.setattr(speed, 'time', SimpleNamespace(perf_counter=lambda: next(ticks)))
    calls = []
    result = measure(lambda: calls.append(1), 6, CPU, warmup=2, repeats=5)
    assert len(calls) == 8
    assert (result.low_s, result.median_s, result.high_s) == (2.0, 3.0, 4.0)
    assert result.images_per_s == 2.0
    assert result.spread == pytest.approx(2 / 3)
    assert result.hours_per_epoch(images=14_400) == 2.0


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere the peak is that of the whole process')
def test_peak_memory_covers_only_the_measured_steps():
    torch.ones(75 * 2**20)  # 300 MiB, before
    small = measure(lambda: None, 1, CPU, warmup=0, repeats=2)
    large = measure(lambda: torch.ones(50 * 2**20), 1, CPU, warmup=0, repeats=2)  # 200 MiB
    assert large.peak_mib - small.peak_mib == pytest.approx(200, abs=20)


def test_training_step_trains(cfg):
    model = build_detector(cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = training_step(model, random_batch(2, (64, 96), 6), cfg, amp=False)
    for _ in range(2):  # at the first, nothing passes below the weights that start as zeros
        step()
    frozen = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert frozen == {name for name, p in model.named_parameters() if not p.requires_grad}


def test_detection_step_detects_and_changes_nothing(cfg):
    model = build_detector(cfg)
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    batch = random_batch(2, (64, 96), 6)
    samples = detection_step(model, batch, amp=False)()
    assert [len(sample.pred_instances) for sample in samples] == [12 * 6] * 2  # every query with every class
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize('amp', [False, True])
def test_mixed_precision_reaches_the_layers(cfg, amp):
    model = build_detector(cfg)
    seen = []
    model.encoder.layers[0].ffn.layers[0][0].register_forward_hook(
        lambda module, args, output: seen.append(output.dtype)
    )
    batch = random_batch(2, (64, 96), 6)
    detection_step(model, batch, amp)()
    training_step(model, batch, cfg, amp)()
    assert seen == [torch.bfloat16 if amp else torch.float32] * 2


def test_device_name_includes_the_number_of_threads():
    assert device_name(CPU).endswith(f', {torch.get_num_threads()} threads')


def test_steps_alternate_and_speed_is_the_median_over_rounds(monkeypatch):
    durations = [9.0, 9.0, 2.0, 1.0, 8.0, 2.0, 3.0, 1.0, 9.0, 9.0]  # a warm-up, rounds of two steps, memory
    ticks = itertools.chain.from_iterable((100.0 * i, 100.0 * i + taken) for i, taken in enumerate(durations))
    monkeypatch.setattr(speed, 'time', SimpleNamespace(perf_counter=lambda: next(ticks)))
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in 'ab'}
    found = speed.measure_alternately(steps, 1, CPU, warmup=1, repeats=3)
    assert calls == list('ab') * 5
    assert (found['a'].speed, found['b'].speed) == (1.0, 3.0)  # of 2, 4, 3


def test_limit_runs_every_convolution_and_linear_layer_at_its_own_size(cfg):
    model = build_detector(cfg)
    calls = layer_calls(model, random_batch(2, (64, 96), 6))
    tokens = 2 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())
    assert sum(count for call, count in calls.items() if call.geometry) == convolutions
    # the encoder's FFN and offsets; its value, weights and output, and the values of two decoder layers
    assert calls[(tokens, 32), (64, 32), None] == 2
    assert calls[(tokens, 32), (32, 32), None] == 5
    limit_step(model, random_batch(2, (64, 96), 6))()
