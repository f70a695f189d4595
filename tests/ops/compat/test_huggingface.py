import importlib

import pytest
import torch
from ddetr_ops.compat import huggingface
from ddetr_ops.reference import ms_deform_attn_reference

from tests.ops.cases import make_inputs

transformers = pytest.importorskip('transformers')


def modeling(name):
    return importlib.import_module(f'transformers.models.{name}.modeling_{name}')


def tiny_deformable_detr():
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=['stage2', 'stage3', 'stage4']
    )  # fmt: skip
    config = transformers.DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=resnet,
        num_feature_levels=4, num_labels=3, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=5,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(config)


def test_deformable_detr_trains_and_predicts_the_same():
    torch.manual_seed(0)
    model = tiny_deformable_detr()
    model.eval()
    with (
        torch.no_grad()
    ):  # off the pixel centres, where derivatives jump: the initial offsets are whole numbers
        for name, parameter in model.named_parameters():
            if 'sampling_offsets' in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    images = torch.randn(2, 3, 64, 96)
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    mask[1, 40:] = 0
    labels = [
        {'class_labels': torch.tensor([1]), 'boxes': torch.tensor([[0.5, 0.5, 0.3, 0.2]])} for _ in range(2)
    ]
    results = []
    for step in range(2):
        if step:
            assert huggingface.accelerate(model) == 3  # one encoder layer, two decoder layers
        model.zero_grad()
        out = model(pixel_values=images, pixel_mask=mask, labels=labels)
        out.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((out, grads))
    (before, grads_before), (after, grads_after) = results
    torch.testing.assert_close(after.logits, before.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.pred_boxes, before.pred_boxes, atol=1e-5, rtol=0)
    assert grads_after.keys() == grads_before.keys()
    for name, grad in grads_after.items():
        assert (grad - grads_before[name]).norm() <= 1e-3 * grads_before[name].norm() + 1e-6, name


@pytest.mark.parametrize('name', ['grounding_dino', 'mm_grounding_dino', 'rt_detr', 'deformable_detr'])
def test_layers_of_this_name_are_replaced(name, monkeypatch):
    layer = modeling(name).MultiScaleDeformableAttention()
    inputs = make_inputs(dtype=torch.float32)
    arguments = (
        inputs.value, inputs.spatial_shapes, [tuple(s) for s in inputs.spatial_shapes.tolist()],
        inputs.level_start_index, inputs.sampling_locations, inputs.attention_weights, 64,
    )  # fmt: skip
    before = layer(*arguments)
    calls = []
    monkeypatch.setattr(huggingface, 'ms_deform_attn', lambda *a: calls.append(1) or _op(*a))
    assert huggingface.accelerate(torch.nn.Sequential(layer)) == 1
    torch.testing.assert_close(layer(*arguments), before, atol=1e-5, rtol=0)
    assert calls == [1]


def _op(value, shapes, starts, locations, weights):
    return ms_deform_attn_reference(value, shapes, locations, weights)


@pytest.mark.parametrize('name', ['mask2former', 'oneformer'])
def test_the_function_of_the_segmentation_models_is_replaced(name, monkeypatch):
    source = modeling(name)
    original = source.multi_scale_deformable_attention
    monkeypatch.setattr(source, 'multi_scale_deformable_attention', original)  # put back at the end
    kind = next(n for n in dir(source) if n.endswith('EncoderMultiscaleDeformableAttention'))
    layer = getattr(source, kind)(embed_dim=32, num_heads=4, n_levels=3, n_points=3)
    assert huggingface.accelerate(layer) == 1
    assert source.multi_scale_deformable_attention is huggingface.multi_scale_deformable_attention
    inputs = make_inputs(dtype=torch.float32)
    shapes = [tuple(s) for s in inputs.spatial_shapes.tolist()]
    arguments = (inputs.value, shapes, inputs.sampling_locations, inputs.attention_weights)
    expected = original(*arguments)
    torch.testing.assert_close(
        source.multi_scale_deformable_attention(*arguments), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize('method', ['default', 'discrete'])
@pytest.mark.parametrize('points', [[2, 2, 2], [3, 1, 2], [3, 6, 3]])
@pytest.mark.parametrize('name', ['rt_detr_v2', 'd_fine'])
def test_levels_with_different_numbers_of_points(name, points, method):
    original = modeling(name).multi_scale_deformable_attention_v2
    inputs = make_inputs(dtype=torch.float32, channels=16)
    shapes = [tuple(s) for s in inputs.spatial_shapes.tolist()]
    locations = torch.rand(2, 6, 2, sum(points), 2) * 1.4 - 0.2
    weights = torch.rand(2, 6, 2, sum(points))
    results = []
    for function in (original, huggingface.multi_scale_deformable_attention_v2):
        leaves = [t.clone().requires_grad_() for t in (inputs.value, locations, weights)]
        out = function(leaves[0], shapes, *leaves[1:], points, method)
        grads = torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True, allow_unused=True)
        results.append((out, *grads))
    for actual, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


def test_unsupported_sampling_method_raises():
    inputs = make_inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match="must be 'default' or 'discrete', got 'nearest'"):
        huggingface.multi_scale_deformable_attention_v2(
            inputs.value, inputs.spatial_shapes, inputs.sampling_locations.flatten(3, 4),
            inputs.attention_weights.flatten(3), [3, 3, 3], 'nearest',
        )  # fmt: skip


def test_d_fine_and_rt_detr_v2_layers_are_found(monkeypatch):
    v2 = modeling('rt_detr_v2')
    monkeypatch.setattr(v2, 'multi_scale_deformable_attention_v2', v2.multi_scale_deformable_attention_v2)
    config = transformers.RTDetrV2Config(d_model=32, decoder_attention_heads=4)
    assert huggingface.accelerate(v2.RTDetrV2MultiscaleDeformableAttention(config)) == 1
    assert v2.multi_scale_deformable_attention_v2 is huggingface.multi_scale_deformable_attention_v2
    config = transformers.DFineConfig(d_model=32, decoder_attention_heads=4)
    layer = modeling('d_fine').DFineMultiscaleDeformableAttention(config)
    assert huggingface.accelerate(layer) == 1
    assert layer.ms_deformable_attn_core is huggingface.multi_scale_deformable_attention_v2


def test_model_without_deformable_attention_raises():
    with pytest.raises(ValueError, match='Linear has no deformable attention supported by ddetr_ops'):
        huggingface.accelerate(torch.nn.Linear(2, 2))
