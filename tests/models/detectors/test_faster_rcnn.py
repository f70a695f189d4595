import json
import math

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from torchvision.ops import box_iou

from ddetr.models.detectors import BaseDetector, FasterRCNN
from ddetr.registry import MODELS
from ddetr.structures import AnchorPredictions, DetDataSample

SIZE = (96, 128)  # (h, w)
OBJECTS = {(20, 16, 68, 56): 0, (72, 40, 120, 88): 2}  # x1 y1 x2 y2: class


def tiny_config(root, config: str = 'configs/quickstart/faster-rcnn_shapes.py') -> ConfigDict:
    cfg = Config.fromfile(root / config).model
    cfg.backbone.update(depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3))
    cfg.backbone.update(frozen_stages=-1, norm_eval=False, init_cfg=None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    cfg.rpn_head.update(in_channels=32, feat_channels=32)
    cfg.roi_head.bbox_roi_extractor.out_channels = 32
    cfg.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=3)
    return cfg


def build(cfg: ConfigDict) -> BaseDetector:
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def batch(model: BaseDetector, scale_factor: tuple[float, float] = (1.0, 1.0)) -> dict:
    """One noisy image with a filled rectangle for each of `OBJECTS`, and a noisy image of nothing."""
    generator = torch.Generator().manual_seed(0)
    images, samples = [], []
    for objects in (OBJECTS, {}):
        image = torch.randint(100, 156, (3, *SIZE), generator=generator, dtype=torch.uint8)
        for (x1, y1, x2, y2), label in objects.items():
            image[:, y1:y2, x1:x2] = 0
            image[label, y1:y2, x1:x2] = 255
        sample = DetDataSample(metainfo={'img_shape': SIZE, 'scale_factor': scale_factor})
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor(list(objects), dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(list(objects.values()), dtype=torch.int64),
        )
        images.append(image)
        samples.append(sample)
    return model.data_preprocessor({'inputs': images, 'data_samples': samples}, training=True)


def test_state_dict_and_trainable_parameters_equal_mmdetection(repo_root, checkpoint_lists):
    cfg = Config.fromfile(repo_root / 'configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    cfg.backbone.init_cfg = None
    with torch.device('meta'):
        model = MODELS.build(cfg)
    listed = json.loads((checkpoint_lists / 'mmdet_faster-rcnn_r50_fpn_1x_coco.json').read_text())
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == listed
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    unlearned = ('running_mean', 'running_var', 'num_batches_tracked')
    frozen = ('backbone.conv1.', 'backbone.bn1.', 'backbone.layer1.')
    assert trainable == sum(
        math.prod(shape)
        for key, shape in listed.items()
        if not key.endswith(unlearned) and not key.startswith(frozen)
    )
    assert round(trainable / 1e6) == 42  # the table's figure


def test_it_learns_one_image_and_finds_nothing_in_an_empty_one(repo_root):
    model = build(tiny_config(repo_root)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    data = batch(model)
    first = None
    for _ in range(100):
        total, logged = model.parse_losses(model(**data, mode='loss'))
        first = first or logged
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    # `loss_bbox` begins low: fresh proposals hardly meet the objects
    for name in ('loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls'):
        assert logged[name] < 0.5 * first[name], name
    model.eval()
    with torch.no_grad():
        found, nothing = (s.pred_instances for s in model(**batch(model), mode='predict'))
    sure = found[found.scores > 0.5]
    overlaps = box_iou(sure.bboxes, torch.tensor(list(OBJECTS), dtype=torch.float32))
    for i, label in enumerate(OBJECTS.values()):
        best = overlaps[:, i].argmax()
        assert overlaps[best, i] > 0.75
        assert sure.labels[best] == label
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert not (nothing.scores > 0.5).any()


def test_predictions_are_in_pixels_of_the_original_image(repo_root):
    cfg = tiny_config(repo_root)
    cfg.test_cfg.rcnn.score_thr = 0.0
    model = build(cfg).eval()
    with torch.no_grad():
        same = model(**batch(model), mode='predict')[0].pred_instances
        halved = model(**batch(model, scale_factor=(0.5, 2.0)), mode='predict')[0].pred_instances  # (w, h)
    assert len(same) == 100
    assert same.bboxes[:, 2].max() <= SIZE[1]
    torch.testing.assert_close(halved.bboxes, same.bboxes * torch.tensor([2.0, 0.5, 2.0, 0.5]))
    assert torch.equal(halved.scores, same.scores)


def test_raw_predictions_are_those_of_both_stages(repo_root):
    model = build(tiny_config(repo_root)).eval()
    with torch.no_grad():
        anchors, regions = model(**batch(model), mode='tensor')
    assert isinstance(anchors, AnchorPredictions)
    assert [tuple(level.shape) for level in anchors.logits] == [
        (2, 3 * h * w) for h, w in ((24, 32), (12, 16), (6, 8), (3, 4))
    ]
    assert regions.logits.shape == (200, 4)
    assert regions.deltas.shape == (200, 12)


@pytest.mark.parametrize('kind', ['IoULoss', 'GIoULoss', 'CIoULoss', 'BoundedIoULoss'])
def test_the_iou_family_trains_both_stages(repo_root, kind):
    cfg = tiny_config(repo_root)
    for part in (cfg.rpn_head, cfg.roi_head.bbox_head):
        part.update(reg_decoded_bbox=True, loss_bbox={'type': kind, 'loss_weight': 10.0})
    model = build(cfg).train()
    losses = model(**batch(model), mode='loss')
    (losses['loss_rpn_bbox'] + losses['loss_bbox']).backward()
    for layer in (model.rpn_head.rpn_reg, model.roi_head.bbox_head.fc_reg):
        assert torch.isfinite(layer.weight.grad).all()
        assert layer.weight.grad.abs().max() > 0


def test_without_train_cfg_it_predicts_only(repo_root):
    cfg = tiny_config(repo_root)
    del cfg.train_cfg
    model = build(cfg).eval()
    assert isinstance(model, FasterRCNN)
    assert len(model(**batch(model), mode='predict')) == 2
    with pytest.raises(ValueError, match='built without train_cfg'):
        model(**batch(model), mode='loss')
