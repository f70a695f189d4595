"""Prepared models compared with the original, for every family, in both precisions and without oneDNN's operators."""

import copy

import pytest
import torch
from torch import nn

from ddetr.apis import prepare_for_inference, prepared
from ddetr.models import inference_form
from ddetr.models.inference_form import FusedBlock, FusedConv2d, PackedLinear, TiledMLP, conv_norm_pairs
from ddetr.registry import MODELS
from ddetr.utils import InputError
from tests.models.test_checkpointing import FAMILIES, model_config


def detector(root, family):
    """Randomise weights as if trained: distinct classes and boxes, and norms with statistics."""
    torch.manual_seed(0)
    config = model_config(root, family)
    if family == 'faster-rcnn':
        config.roi_head.bbox_head.fc_out_channels = 32
        config.test_cfg.rpn.max_per_img = 50
    model = MODELS.build(config).eval()
    with torch.no_grad():
        for parameter in () if family == 'faster-rcnn' else model.parameters():
            noise = 0.2 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.02
            parameter.add_(noise * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def no_packing(monkeypatch):
    """Simulate a PyTorch without the private operators."""
    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', None)
    inference_form.can_pack.cache_clear()
    yield
    inference_form.can_pack.cache_clear()


@pytest.mark.parametrize('family', FAMILIES)
def test_fp32_form_detects_the_same(repo_root, family):
    model = detector(repo_root, family)
    form = prepare_for_inference(model)
    assert form.difference.detections > 0
    # a pyramid and heads without norms, as here, magnify rounding
    assert max(form.difference.score, form.difference.box) < (1e-4 if family == 'faster-rcnn' else 1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in form.modules())
    kinds = {type(m) for m in form.modules()}
    assert kinds >= {FusedConv2d, PackedLinear, FusedBlock}
    assert nn.Conv2d not in kinds
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())  # the detector itself is as it was


@pytest.mark.parametrize('dtype', ['fp32', 'bf16'])
def test_form_without_private_operators(repo_root, no_packing, dtype):
    model = detector(repo_root, 'deformable-detr')
    form = prepare_for_inference(model, dtype)
    kinds = {type(m) for m in form.modules()}
    assert not kinds & {FusedConv2d, PackedLinear, FusedBlock, nn.BatchNorm2d}
    assert TiledMLP in kinds
    assert form.difference.detections > 0 or dtype == 'bf16'


def test_bf16_form_stores_feature_maps_in_bf16(repo_root, no_packing):
    form = prepare_for_inference(detector(repo_root, 'deformable-detr'), 'bf16')
    dtypes = {name: p.dtype for name, p in form.named_parameters()}
    low = {name for name, dtype in dtypes.items() if dtype is torch.bfloat16}
    assert {'backbone.conv1.weight', 'encoder.layers.0.self_attn.value_proj.weight'} <= low
    assert 'decoder.layers.0.cross_attn.value_proj.weight' in low  # of the memory's tokens
    assert not {name for name in low if name.startswith('bbox_head') or 'cross_attn.output_proj' in name}


def test_tiling_is_bit_identical(monkeypatch, no_packing):
    torch.manual_seed(0)
    mlp = nn.Sequential(
        nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1)), nn.Linear(64, 16)
    ).eval()
    model = nn.ModuleList([copy.deepcopy(mlp)]).requires_grad_(False)
    inference_form.pack_layers(model)
    assert isinstance(model[0], TiledMLP)
    monkeypatch.setattr(inference_form, 'ROW_TILE', 64)
    x = torch.randn(2, 100, 16)
    assert torch.equal(model[0](x), mlp(x))


def test_packed_layers_take_empty_batches():
    linear, conv = nn.Linear(4, 8), nn.Conv2d(4, 8, 3, padding=1)
    assert PackedLinear(linear)(torch.zeros(0, 4)).shape == (0, 8)
    assert FusedConv2d(conv, relu=True)(torch.zeros(0, 4, 5, 5)).shape == (0, 8, 5, 5)
    assert torch.equal(PackedLinear(linear).weight, linear.weight)


class Shared(nn.Module):
    """A convolution whose output is used twice, one with a norm for each of two maps, and a foldable pair."""

    def __init__(self):
        super().__init__()
        self.kept, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv, self.after = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.kept(x)
        y = self.norm(y) + y
        y = self.first(self.shared(y)) + self.second(self.shared(y))
        return self.after(self.conv(y))


def test_only_a_convolution_whose_norm_alone_reads_it_is_folded():
    model = Shared().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
    assert list(conv_norm_pairs(model)) == [('conv', 'after')]
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        before = model(x)
        assert inference_form.fold_norms(model) == 1
        assert torch.allclose(model(x), before, atol=1e-5)


def test_unknown_form_raises(repo_root, monkeypatch):
    fold = inference_form.fold_norms

    def wrong(model):
        fold(model)
        next(model.parameters()).data.mul_(1.01)

    monkeypatch.setattr(inference_form, 'fold_norms', wrong)
    with pytest.raises(InputError, match=r'the prepared fp32 model differs from the original by .* in score'):
        prepare_for_inference(detector(repo_root, 'deformable-detr'))


def test_layer_without_bf16_support_raises(repo_root, no_packing):
    model = detector(repo_root, 'deformable-detr')
    model.neck.register_forward_hook(
        lambda module, args, output: [x @ torch.eye(x.shape[-1]) for x in output]
    )
    with pytest.raises(
        InputError, match=r'DeformableDETR does not run when prepared in bf16: .*original model'
    ):
        prepare_for_inference(model, 'bf16')


def test_unknown_dtype_raises():
    with pytest.raises(InputError, match=r"dtype='fp16' must be one of fp32, bf16"):
        prepare_for_inference(nn.Identity(), 'fp16')


def test_nearest_detections_of_a_class_are_compared(repo_root):
    (first, second), *_ = (prepared._random_examples()[0]['data_samples'],)
    from mmengine.structures import InstanceData

    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [8.0, 8.0, 32.0, 32.0]])
    scores, labels = torch.tensor([0.9, 0.6]), torch.tensor([1, 2])
    first.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    second.pred_instances = InstanceData(
        bboxes=boxes.flip(0) + 2.56, scores=scores.flip(0), labels=labels.flip(0)
    )
    found = prepared.compare_detections([first], [second], 0.3)
    assert found.detections == 2  # the last of a full list may be another one
    assert found.box == pytest.approx(2.56 / 192)
    second.pred_instances.labels = torch.tensor([2, 3])
    assert not prepared.compare_detections([first], [second], 0.3).within(prepared.BOUNDS['bf16'])
