"""One large batch and the same batch in parts have the same gradient; see also tools/analysis/batch_check.py."""

from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData

from ddetr.models.set_prediction import ClassTerm
from ddetr.registry import MODELS
from ddetr.structures import DetDataSample, Matched
from ddetr.structures.effective_batch import EffectiveBatch, effective_batch

SIDE = 64
COUNTS = (3, 0, 5, 1)  # objects of the images


def images() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, count in enumerate(COUNTS):
        sample = DetDataSample(metainfo={'img_shape': (SIDE, SIDE), 'draw_seed': number})
        corner = torch.rand(count, 2, generator=generator) * 36
        side = torch.rand(count, 2, generator=generator) * 20 + 8
        labels = torch.randint(6, (count,), generator=generator)
        sample.gt_instances = InstanceData(bboxes=torch.cat([corner, corner + side], 1), labels=labels)
        pixels = torch.randint(256, (3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
        made.append({'inputs': pixels, 'data_samples': sample})
    return made


def gradient(model, parts: list[tuple[int, ...]], known: bool = True) -> torch.Tensor:
    """Mean of the gradients of batches of these images; `known` is what the training loop does."""
    model.zero_grad()
    whole, batches = images(), []
    for part in parts:
        batch = {key: [whole[index][key] for index in part] for key in ('inputs', 'data_samples')}
        batches.append(model.data_preprocessor(batch, training=True))
    counts = Counter()
    if len(parts) > 1 and hasattr(model, 'count_ahead'):
        for batch in batches:
            counts.update(model(**batch, mode='count_ahead'))
    for batch in batches:
        boxes = COUNTS if known else [len(sample.gt_instances) for sample in batch['data_samples']]
        effective = EffectiveBatch(boxes, 1, len(parts) if known else 1, counts if known else {})
        with effective.active():
            losses = model(**batch, mode='loss')
        (model.parse_losses(losses)[0] / len(parts)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    'config',
    ['deformable-detr-refine-twostage', 'h-deformable-detr', 'dino', 'detr', 'faster-rcnn'],
)
def test_accumulated_parts_have_the_gradient_of_the_full_batch(repo_root, double, config):
    cfg = Config.fromfile(repo_root / f'configs/quickstart/{config}_shapes.py').model
    cfg.backbone.update(norm_eval=True, base_channels=16)
    if config == 'faster-rcnn':  # more regions than an image has proposals, which are not equally many
        cfg.train_cfg.rcnn.sampler.num = 512
        cfg.train_cfg.rpn_proposal.update(max_per_img=1000, nms={'type': 'nms', 'iou_threshold': 0.3})
    cfg.neck.in_channels = [channels // 4 for channels in cfg.neck.in_channels]
    model = MODELS.build(cfg)
    model.init_weights()
    model.train()
    whole = gradient(model, [(0, 1, 2, 3)])
    for parts in ([(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)]):
        apart = (gradient(model, parts) - whole).norm() / whole.norm()
        assert apart < 1e-6, parts
        assert (gradient(model, parts, known=False) - whole).norm() / whole.norm() > 1e-4


def test_softmax_weights_background_of_all_parts():
    """Two parts with 1 and 3 of 8 queries matched: 4 objects and 12 times 0.1 over two parts."""
    logits = torch.randn(1, 8, 4, generator=torch.Generator().manual_seed(2))
    labels = torch.full((1, 8), -1)
    labels[0, 2] = 1
    nothing = torch.zeros(1, 4)
    index = (torch.tensor([0]), torch.tensor([2]))
    matched = Matched(logits, labels, *index, nothing, nothing, nothing, nothing, 4, 16, 2, 2.0, {})
    found = ClassTerm({'type': 'CrossEntropyLoss', 'bg_cls_weight': 0.1})(matched)['loss_cls']
    minus_log = -logits[0].log_softmax(-1)
    background = torch.cat([minus_log[:2, 3], minus_log[3:, 3]]).sum()
    torch.testing.assert_close(found, (minus_log[2, 1] + 0.1 * background) / ((4 + 0.1 * 12) / 2))


def test_counts_that_depend_on_predictions():
    here = EffectiveBatch((1, 2), accumulated=2, counts={'regions': 7})
    assert here.total('regions', 3) == 7
    assert here.share(7) == 3.5
    assert here.share(0) == 0.5  # as for one object in the whole batch
    with pytest.raises(ValueError, match=r"count 'anchors', which is unknown .* count_ahead"):
        here.total('anchors', 3)
    assert EffectiveBatch((1, 2)).total('anchors', 3) == 3
    with here.active():
        assert effective_batch([]) is here
    assert effective_batch([image['data_samples'] for image in images()]).boxes_per_image == list(COUNTS)
