"""Sampling points compared with independently captured inputs of the op and with the attention output."""

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ddetr_ops import attention, ms_deform_attn
from torch import nn

from ddetr.analysis.sampling import look_at, record_sampling
from ddetr.apis import inference_detector
from ddetr.engine.config import load_config
from ddetr.utils import InputError
from tests.models.helpers import build, narrow
from tests.parity.hf import randomize

CONFIGS = {
    'points': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'boxes': 'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    'single-scale': 'deformable_detr/deformable-detr-single-scale_r50_16xb2-50e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'hybrid': 'deformable_detr/h-deformable-detr_r50_16xb2-12e_coco.py',
}
IMAGE = np.random.default_rng(3).integers(0, 256, (97, 131, 3), dtype=np.uint8)


def make_detector(repo_root, config):
    """A narrow detector with random weights that pads a resized image of 160 x 216 pixels to 192 x 256."""
    cfg = narrow(repo_root, CONFIGS[config])
    cfg.data_preprocessor.pad_size_divisor = 64
    model = build(cfg)
    randomize(model)
    model.cfg = load_config(repo_root / 'tests/configs/tiny_shapes.py')
    return model


@pytest.fixture(scope='module', params=CONFIGS)
def looked(request, repo_root):
    """The detector, its recorded points on an image, and the independently captured inputs."""
    model, given, flats, projected = make_detector(repo_root, request.param), [], [], {}
    op = attention.ms_deform_attn_fused

    def capture(*args):
        given.append((*args, op(*args)))
        return given[-1][-1]

    model.encoder.register_forward_pre_hook(lambda module, args: flats.append(args[0]))
    for name, module in model.named_modules():
        if name.endswith('output_proj'):
            module.register_forward_hook(lambda m, args, out, name=name: projected.update({name: out}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, 'ms_deform_attn_fused', capture)
        look = look_at(model, IMAGE)
    return model, look, given, flats[0], projected


def test_points_of_a_detection_lie_where_the_op_sampled(looked):
    _, look, given, flat, _ = looked
    shapes, ratios = flat.spatial_shapes.double(), flat.valid_ratios[0].double()
    assert ratios.min() < 0.9  # or padding would not be tested
    for detection in (0, 7):
        query = int(look.sample.pred_instances.query_index[detection])
        for layer, points in enumerate(look.detection(detection)):
            _, _, _, reference, offsets, logits, counts, _ = given[1 + layer]
            ref, at = reference[0, query].double(), offsets[0, query].double().flatten(1, -2)  # (M, K, 2)
            k = 0
            for level, count in enumerate(counts):
                for _ in range(count):
                    if ref.shape[-1] == 2:
                        where = ref[level] + at[:, k] / shapes[level].flip(0)
                    else:
                        where = ref[level, :2] + at[:, k] / count * ref[level, 2:] / 2
                    # the model's coordinates of the unpadded image, as its boxes have them
                    px = where / ratios[level] * torch.tensor([131.0, 97.0])
                    assert np.abs(points.xy_px[:, k] - px.numpy()).max() < 1e-4
                    assert points.level_of_point[k] == level
                    k += 1
            weights = logits[0, query].softmax(-1)
            np.testing.assert_allclose(points.weights, weights, atol=1e-6)


def test_weighted_sum_of_the_points_is_the_attentions_output(looked):
    """Each level is sampled by `grid_sample` at the points that are drawn."""
    model, look, given, flat, projected = looked
    query = look.query_of(2)
    for layer, points in enumerate(look.detection(2)):
        value, *_, output = given[1 + layer]
        heads = []
        for head in range(value.shape[2]):
            total, start = 0, 0
            for level, (height, width) in enumerate(flat.spatial_shapes.tolist()):
                tokens = value[0, start : start + height * width, head]
                start += height * width
                of_level = points.level_of_point == level
                padded = points.xy_px[head, of_level] / [131, 97] * flat.valid_ratios[0, level].numpy()
                grid = torch.tensor(padded * 2 - 1, dtype=torch.float32)[None, None]  # (1, 1, P, 2)
                maps = tokens.T.reshape(1, -1, height, width)
                sampled = F.grid_sample(maps, grid, align_corners=False)[0, :, 0]  # (D, P)
                total = total + sampled @ torch.tensor(points.weights[head, of_level])
            heads.append(total)
        summed = torch.cat(heads)
        assert (summed - output[0, query]).abs().max() < 1e-5
        name = f'{points.layer}.output_proj'
        linear = model.get_submodule(name)
        attended = F.linear(summed, linear.weight, linear.bias)
        assert (attended - projected[name][0, query]).abs().max() < 1e-5


def test_layers_references_and_boxes(looked):
    model, look, _, _, _ = looked
    found = look.sample.pred_instances
    points = look.detection(1)
    assert [p.layer for p in points] == ['decoder.layers.0.cross_attn', 'decoder.layers.1.cross_attn']
    box = look.boxes_xyxy_px[-1, look.query_of(1)]
    torch.testing.assert_close(box.clamp(torch.zeros(4), torch.tensor([131.0, 97] * 2)), found.bboxes[1])
    if len(points[1].reference_px) == 4:  # a refined layer starts from the boxes of the layer before
        refined = look.boxes_xyxy_px[0, look.query_of(1)].numpy()
        if model.decoder.norm is None and not model.decoder.look_forward_twice:
            np.testing.assert_allclose(points[1].reference_px, refined, atol=1e-3)
    same = inference_detector(model, IMAGE).pred_instances
    assert torch.equal(same.bboxes, found.bboxes)
    assert torch.equal(same.scores, found.scores)


def test_token_samples_around_its_own_pixel(looked):
    _, look, _, flat, _ = looked
    for level in range(len(flat.spatial_shapes)):
        (points,) = look.token(100.0, 30.0, level)
        assert points.layer == 'encoder.layers.0.self_attn'
        cell = (
            np.array([131, 97]) / (flat.spatial_shapes[level].flip(0) * flat.valid_ratios[0, level]).numpy()
        )
        assert (np.abs(points.reference_px - [100.0, 30.0]) <= cell / 2 + 1e-3).all()
    with pytest.raises(InputError, match=r'pixel \(131, 30\) is outside the image of 131 x 97 pixels'):
        look.token(131, 30)
    with pytest.raises(InputError, match='there is no level 9'):
        look.token(1, 1, 9)


def test_unknown_detections_and_queries_raise(looked):
    look = looked[1]
    with pytest.raises(
        InputError, match=f'no detection 500: this image has {len(look.sample.pred_instances)}'
    ):
        look.detection(500)
    with pytest.raises(InputError, match='no query -1'):
        look.query(-1)


def test_model_without_deformable_attention_raises(repo_root):
    model = build(narrow(repo_root, 'detr/detr_r50_8xb2-150e_coco.py'))
    model.cfg = load_config(repo_root / 'tests/configs/tiny_shapes.py')
    with pytest.raises(InputError, match='DETR does not use deformable attention of ddetr_ops'):
        look_at(model, IMAGE)


class Sampler(nn.Module):
    """Third-party layer with a different number of points per level."""

    def forward(self, value, locations, weights):
        shapes = torch.tensor([[4, 5], [2, 3]], dtype=torch.int32)
        return ms_deform_attn(value, shapes, torch.tensor([0, 20]), locations, weights, num_points=[3, 1])


def test_any_module_that_calls_the_op_is_recorded_in_its_own_thread_only():
    model = nn.Sequential(nn.Identity(), nn.ModuleDict({'look': Sampler()}))
    model.forward = lambda *args: model[1]['look'](*args)
    value, locations = torch.rand(1, 26, 2, 4), torch.rand(1, 7, 2, 4, 2)
    weights = torch.rand(1, 7, 2, 4).softmax(-1)
    expected = model(value, locations, weights)
    with record_sampling(model) as record:
        assert torch.equal(model(value, locations, weights), expected)
        # another thread is inside the model's other layer meanwhile
        begun, done = threading.Event(), threading.Event()
        model[0].forward = lambda x: (begun.set(), done.wait(), model(value, locations, weights))
        other = threading.Thread(target=model[0], args=(value,))
        other.start()
        begun.wait()
        model(value, locations, weights)
        done.set()
        other.join()
    assert [call.layer for call in record.calls] == ['1.look', '1.look']
    call = record.calls[0]
    assert call.reference is None
    assert torch.equal(call.locations, locations)
    assert torch.equal(call.output, expected)
    assert call.level_of_point.tolist() == [0, 0, 0, 1]
    model(value, locations, weights)
    assert len(record.calls) == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
