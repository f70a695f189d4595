"""The parts of ops/gpu_benchmark.py that need no GPU: inputs, candidates, table."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from ddetr_ops import ms_deform_attn, ms_deform_attn_fused

SPEC = importlib.util.spec_from_file_location(
    'gpu_benchmark', Path(__file__).resolve().parents[2] / 'ops' / 'gpu_benchmark.py'
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)

SHAPES = ((20, 32), (10, 16), (5, 8))
FP32 = benchmark.PRECISIONS[0]


def _geometry(offsets, queries=None):
    return benchmark.Geometry('test', SHAPES, queries, 16, offsets)


@pytest.mark.parametrize(('offsets', 'queries'), [('fresh', None), ('3', None), ('6', 300)])
def test_fused_inputs_are_equivalent_to_classic_ones(offsets, queries):
    i = benchmark.make_inputs(_geometry(offsets, queries), FP32, 'cpu', 1)
    assert i.value.shape == (1, 840, 8, 16)
    assert i.locations.shape == (1, queries or 840, 8, 3, 4, 2)
    classic = ms_deform_attn(*i[:5])
    torch.testing.assert_close(ms_deform_attn_fused(*i[:3], *i[5:8]), classic, rtol=1e-4, atol=1e-4)
    sampled = benchmark.grid_sample_form(i.value, i.shapes.tolist(), i.locations, i.weights)
    torch.testing.assert_close(sampled, classic, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('sigma', ['3', '6'])
def test_trained_offsets_have_their_deviation_in_pixels_of_each_level(sigma):
    i = benchmark.make_inputs(_geometry(sigma), FP32, 'cpu')
    pixels = (i.locations - i.references[:, :, None, :, None]) * i.shapes.flip(-1)[:, None]
    for level in range(3):
        assert float(pixels[:, :, :, level].std()) == pytest.approx(float(sigma), rel=0.02)


def test_fresh_offsets_are_those_of_a_new_model():
    i = benchmark.make_inputs(_geometry('fresh'), FP32, 'cpu')
    assert i.offsets[0, 0, 0, 0].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0]]  # head 0 looks to the right
    assert i.offsets.abs().amax(-1)[..., 3].eq(4).all()


def test_encoder_queries_are_the_pixel_centres():
    i = benchmark.make_inputs(_geometry('3'), FP32, 'cpu')
    assert i.references[0, 0, 0].tolist() == pytest.approx([0.5 / 32, 0.5 / 20])
    assert i.references[0, 1, 2].tolist() == pytest.approx([1.5 / 32, 0.5 / 20])
    assert i.references[0, 640, 1].tolist() == pytest.approx([0.5 / 16, 0.5 / 10])


class FakeMmcv:
    """mmcv's two functions, on the CPU operators."""

    @staticmethod
    def forward(*arguments):
        return ms_deform_attn(*arguments[:5])

    @staticmethod
    def backward(value, shapes, starts, locations, weights, grad, *outputs):
        arguments = (value, shapes, starts, locations, weights, grad)
        for to, result in zip(outputs, torch.ops.ddetr_ops.ms_deform_attn_backward(*arguments), strict=False):
            to.copy_(result)


@pytest.mark.parametrize('precision', benchmark.PRECISIONS, ids=lambda p: p.name)
def test_every_candidate_computes_the_same(precision):
    i = benchmark.make_inputs(_geometry('3', 10), precision, 'cpu')
    passes = benchmark.candidates(i, FakeMmcv())
    has_rivals = precision.value == precision.points
    assert ('mmcv' in passes['backward']) == ('grid_sample' in passes['forward']) == has_rivals
    tolerance = {'rtol': 2e-2, 'atol': 2e-2 if precision.value == torch.float32 else 0.3}
    outputs = [function() for function in passes['forward'].values()]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], **tolerance)
    training = passes['public call, both']
    grad_values = [function()[0] for function in training.values()]
    for grad in grad_values[1:]:
        torch.testing.assert_close(grad, grad_values[0], **tolerance)
    for function in passes['backward'].values():
        function()
    assert benchmark.MERGE not in os.environ


def test_merging_is_switched_per_call():
    seen = []
    benchmark._merging(7, lambda: seen.append(os.environ[benchmark.MERGE]))()
    assert seen == ['7']
    assert benchmark.MERGE not in os.environ


def test_ratios_name_the_precision_of_the_rival():
    times = {
        ('forward', 'fp32', 'ddetr_ops'): benchmark.Times(0.5, 0.25),
        ('forward', 'fp32', 'grid_sample'): benchmark.Times(5.0, 4.0),
        ('forward', 'fp32', 'mmcv'): benchmark.Times(1.0, 0.9),
        ('forward', 'fp16', 'mmcv'): benchmark.Times(0.8, 0.7),
        ('forward', 'bf16, fp32 points', 'ddetr_ops'): benchmark.Times(0.4, 0.2),
    }
    floors = {('forward', precision.name): 0.125 for precision in benchmark.PRECISIONS}
    head, line, *_ = benchmark.header()
    rows = list(benchmark.rows(_geometry('3'), times, floors))
    assert head.split('|')[9:-1] == [' x grid_sample fp32 ', ' x mmcv fp32 ', ' x mmcv fp16 ']
    assert (
        rows[0] == '| test | 3 | forward | fp32 | ddetr_ops | 0.500 | 0.250 | 0.125 | 10.00 | 2.00 | 1.60 |'
    )
    assert rows[4].endswith('| ddetr_ops | 0.400 | 0.200 | 0.125 | 12.50 | 2.50 | 2.00 |')
    assert {row.count('|') for row in [head, line, *rows]} == {12}
