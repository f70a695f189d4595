"""DINO against stored outputs of the original code, with weights read from a checkpoint of the original's form."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from ddetr.models.detectors.dino_denoising import DenoisingQueries, denoising_mask
from ddetr.registry import MODELS
from ddetr.structures import DetDataSample
from ddetr.weights import load_weights
from tests.conftest import ROOT, SHARED

SIZES_HW = [(352, 480), (416, 320)]


@pytest.fixture(scope='module')
def golden():
    path = SHARED / 'golden' / 'dino_4scale_eval.npz'
    if not path.exists():
        pytest.skip(f'{path} is absent: stored outputs of the original code are not part of the project')
    return {name: torch.as_tensor(value) for name, value in np.load(path).items()}


@pytest.fixture(scope='module')
def outputs(golden, checkpoint_lists, tmp_path_factory):
    """Our model of 91 classes with the original's weights, and its predictions with the original's selection."""
    spec = importlib.util.spec_from_file_location('golden_inputs', SHARED / 'golden' / 'inputs.py')
    inputs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(inputs)
    keys = json.loads((checkpoint_lists / 'official_dino_4scale_r50.json').read_text())
    path = tmp_path_factory.mktemp('dino') / 'dino.pth'
    torch.save({'model': inputs.dino_state_dict(keys)}, path)

    config = Config.fromfile(ROOT / 'configs/dino/dino-4scale_r50_8xb2-12e_coco.py').model
    config.backbone.init_cfg = None
    config.bbox_head.num_classes = 91
    model = MODELS.build(config).eval()
    report = load_weights(model, path)
    assert report.missing == report.unexpected == ()

    images, mask = torch.zeros(2, 3, 416, 480), torch.ones(2, 416, 480, dtype=torch.bool)
    for i, image in enumerate(inputs.images()):
        height, width = image.shape[1:]
        images[i, :, :height, :width], mask[i, :height, :width] = image, False
    chosen = {}
    choose_tokens = model.choose_tokens

    def choose_the_originals(logits):
        chosen.update(index=choose_tokens(logits), logits=logits)
        return golden['topk_index']

    model.choose_tokens = choose_the_originals
    with torch.no_grad():
        return model, model(images, pad_mask=mask), chosen


def test_the_same_tokens_are_selected(outputs, golden):
    _, _, chosen = outputs
    scores = chosen['logits'].amax(-1).gather(1, golden['topk_index'])
    torch.testing.assert_close(scores, golden['topk_score'], atol=1e-4, rtol=0)
    for ours, theirs in zip(chosen['index'].tolist(), golden['topk_index'].tolist(), strict=True):
        assert set(ours) == set(theirs)


def test_logits_and_boxes_of_every_decoder_layer_and_of_the_encoder(outputs, golden):
    _, preds, _ = outputs
    for n in range(6):
        prefix = '' if n == 5 else f'aux{n}_'
        torch.testing.assert_close(preds.cls_logits[n], golden[f'{prefix}logits91'], atol=1e-4, rtol=0)
        torch.testing.assert_close(preds.boxes_cxcywh_norm[n], golden[f'{prefix}boxes91'], atol=1e-4, rtol=0)
    torch.testing.assert_close(preds.proposals.cls_logits, golden['interm_logits91'], atol=1e-4, rtol=0)
    torch.testing.assert_close(preds.proposals.boxes_cxcywh_norm, golden['interm_boxes91'], atol=1e-4, rtol=0)


def test_detections_equal_the_original(outputs, golden):
    """Bit for bit from the stored logits and boxes; ours are clipped to the image."""
    model, preds, _ = outputs
    stored = preds._replace(cls_logits=golden['logits91'][None], boxes_cxcywh_norm=golden['boxes91'][None])
    samples = [DetDataSample(metainfo={'img_shape': size}) for size in SIZES_HW]
    for which in (stored, preds):
        for i, sample in enumerate(model.bbox_head.predict(which, samples)):
            found, (height, width) = sample.pred_instances, SIZES_HW[i]
            boxes = golden[f'post{i}/boxes'].clamp(min=0).minimum(torch.tensor([width, height] * 2))
            assert len(found) == 300
            tolerance = {'rtol': 0, 'atol': 1e-4} if which is preds else {'rtol': 0, 'atol': 0}
            torch.testing.assert_close(found.scores, golden[f'post{i}/scores'], **tolerance)
            if which is stored:
                assert torch.equal(found.labels, golden[f'post{i}/labels'])
                torch.testing.assert_close(found.bboxes, boxes, rtol=0, atol=1e-4)


def test_denoising_queries_equal_the_original(golden):
    given = DenoisingQueries(
        golden['dn/query_labels'], golden['dn/query_boxes'], int(golden['dn/num_groups'])
    )
    size = int(golden['dn/pad_size'])
    assert given.labels.shape == (2, size)
    mask = denoising_mask(900, given, torch.device('cpu'))
    theirs_first = torch.cat(
        [torch.arange(900, 900 + size), torch.arange(900)]
    )  # the original puts them in front
    assert torch.equal(mask[theirs_first][:, theirs_first], golden['dn/attn_mask'])
    # the slots that hold an object are the matched ones and, half a group later, their negatives
    half = size // given.num_groups // 2
    slots = torch.zeros(2, size, dtype=torch.bool)
    for b, match in enumerate(given.matches()):
        slots[b, match.query_index] = slots[b, match.query_index + half] = True
    expected = torch.zeros_like(slots)
    expected[golden['dn/known_batch'], golden['dn/known_slot']] = True
    assert torch.equal(slots, expected)
    assert torch.equal(given.labels >= 0, expected)
    assert torch.equal(given.labels[expected].sort().values, golden['dn/known_labels'].sort().values)
