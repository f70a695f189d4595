"""Selection for a batch gives every image what it would get alone."""

import pytest
import torch

from ddetr.models.set_prediction import set_pred_instances
from ddetr.structures import DetDataSample, SetPredictions


@pytest.mark.parametrize('use_sigmoid', [True, False])
def test_detections_of_a_batch_equal_those_of_single_images(use_sigmoid):
    logits, boxes = torch.randn(2, 3, 20, 5), torch.rand(2, 3, 20, 4)
    sizes = [(48, 64), (64, 40), (30, 30)]
    samples = [DetDataSample(metainfo={'img_shape': size, 'scale_factor': (2.0, 0.5)}) for size in sizes]
    set_pred_instances(SetPredictions(logits, boxes), samples, max_per_img=15, use_sigmoid=use_sigmoid)
    for i, ((height, width), sample) in enumerate(zip(sizes, samples, strict=True)):
        found = sample.pred_instances
        if use_sigmoid:
            scores = logits[-1, i].sigmoid()
        else:
            scores = logits[-1, i].softmax(-1)[:, :-1]
            scores = scores.where(scores == scores.amax(-1, keepdim=True), torch.tensor(-1.0))
        best = scores.flatten().argsort(descending=True)[:15]
        assert torch.equal(found.scores, scores.flatten()[best])
        assert torch.equal(found.query_index, best // scores.shape[1])
        assert torch.equal(found.labels, best % scores.shape[1])
        x, y, w, h = boxes[-1, i, found.query_index].unbind(-1)
        corners = [
            ((x - w / 2) * width).clamp(0, width) / 2,
            ((y - h / 2) * height).clamp(0, height) / 0.5,
            ((x + w / 2) * width).clamp(0, width) / 2,
            ((y + h / 2) * height).clamp(0, height) / 0.5,
        ]
        torch.testing.assert_close(found.bboxes, torch.stack(corners, -1), rtol=1e-6, atol=1e-5)
