"""The region proposal network (Ren et al., "Faster R-CNN", section 3.1): the first stage."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from ddetr.registry import MODELS, TASK_UTILS
from ddetr.structures import AnchorPredictions, DetDataSample, Proposals, Sampled
from ddetr.structures.effective_batch import effective_batch

from ..task_modules.nms import grouped_nms

COUNT = 'sampled anchors'


@MODELS.register_module()
class RPNHead(BaseModule):
    """Says of every anchor whether it holds an object, and where the object's sides are.

    Args:
        in_channels: of all levels.
        feat_channels: of the hidden layers.
        anchor_generator, bbox_coder, loss_cls, loss_bbox: configs of the parts; `loss_cls` with sigmoid.
        num_classes: 1, an object.
        num_convs: hidden layers.
        reg_decoded_bbox: `loss_bbox` compares boxes (the IoU family), not deltas.
        train_cfg: `assigner`, `sampler`, `allowed_border` (pixels that an anchor may stick out of the image in
            training; negative for no limit), `pos_weight` (weight of an object in `loss_cls`; 1 if not positive),
            `use_padding` (train on anchors in the padding too, as torchvision does; default False).

    Raises:
        ValueError: a softmax `loss_cls`, several classes, a sampler that adds ground-truth boxes.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        anchor_generator: dict,
        bbox_coder: dict,
        loss_cls: dict,
        loss_bbox: dict,
        num_classes: int = 1,
        num_convs: int = 1,
        reg_decoded_bbox: bool = False,
        train_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg or {'type': 'Normal', 'layer': 'Conv2d', 'std': 0.01})
        self.anchor_generator = TASK_UTILS.build(anchor_generator)
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        if num_classes != 1 or not self.loss_cls.use_sigmoid:
            raise ValueError(
                f'RPNHead knows one class by sigmoid: got num_classes={num_classes}, '
                f'loss_cls.use_sigmoid={self.loss_cls.use_sigmoid}'
            )
        self.reg_decoded_bbox = reg_decoded_bbox
        self.train_cfg = train_cfg or {}
        if train_cfg:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler', {'type': 'PseudoSampler'}))
            if self.sampler.add_gt_as_proposals:
                raise ValueError('train_cfg.rpn.sampler: set add_gt_as_proposals=False, anchors are fixed')
        num_anchors = self.anchor_generator.num_base_anchors
        self.rpn_conv = _hidden_layers(in_channels, feat_channels, num_convs)
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1)

    def forward(self, feats: Sequence[Tensor], input_size: tuple[int, int]) -> AnchorPredictions:
        """L x (B, C, H_l, W_l) of padded images of `input_size` (h, w) -> predictions for every anchor."""
        level_sizes = [tuple(feat.shape[-2:]) for feat in feats]
        anchors = self.anchor_generator.grid_anchors(level_sizes, input_size, feats[0].device)
        logits, deltas = [], []
        for feat in feats:
            hidden = F.relu(self.rpn_conv(feat))
            logits.append(self.rpn_cls(hidden).permute(0, 2, 3, 1).flatten(1).float())  # (B, N_l)
            deltas.append(self.rpn_reg(hidden).permute(0, 2, 3, 1).reshape(feat.shape[0], -1, 4).float())
        return AnchorPredictions(logits, deltas, anchors)

    def loss(self, preds: AnchorPredictions, samples: list[DetDataSample]) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox`, both divided by the sampled anchors of the effective batch."""
        logits, deltas = torch.cat(preds.logits, dim=1), torch.cat(preds.deltas, dim=1)  # (B, N), (B, N, 4)
        anchors = torch.cat(preds.anchors)  # (N, 4)
        cls_logits, labels, reg_pairs, here = [], [], [], 0
        for i, sample in enumerate(samples):
            sampled, gt_boxes = self._sample_anchors(anchors, sample)
            chosen = torch.cat([sampled.positive, sampled.negative])
            cls_logits.append(logits[i, chosen])
            # label 0 is "an object", 1 (the number of classes) background
            labels.append((torch.arange(len(chosen), device=chosen.device) >= len(sampled.positive)).long())
            positive_anchors, positive_deltas = anchors[sampled.positive], deltas[i, sampled.positive]
            if self.reg_decoded_bbox:
                pair = self.bbox_coder.decode(positive_anchors, positive_deltas), gt_boxes
            else:
                pair = positive_deltas, self.bbox_coder.encode(positive_anchors, gt_boxes)
            reg_pairs.append(pair)
            here += sampled.avg_factor
        batch = effective_batch(samples)
        avg_factor = batch.share(batch.total(COUNT, here))
        label = torch.cat(labels)
        pos_weight = self.train_cfg.get('pos_weight', -1)
        weight = torch.where(label == 0, pos_weight, 1.0) if pos_weight > 0 else None
        preds_and_targets = (torch.cat(boxes) for boxes in zip(*reg_pairs, strict=True))
        return {
            'loss_rpn_cls': self.loss_cls(torch.cat(cls_logits)[:, None], label, weight, avg_factor),
            'loss_rpn_bbox': self.loss_bbox(*preds_and_targets, avg_factor=avg_factor),
        }

    def count_ahead(self, preds: AnchorPredictions, samples: list[DetDataSample]) -> dict[str, int]:
        """What `loss` divides by, as far as this batch's part of it goes; see `FasterRCNN.count_ahead`."""
        anchors = torch.cat(preds.anchors)
        return {COUNT: sum(self._sample_anchors(anchors, sample)[0].avg_factor for sample in samples)}

    @torch.no_grad()
    def _sample_anchors(self, anchors: Tensor, sample: DetDataSample) -> tuple[Sampled, Tensor]:
        """The anchors (N, 4) to train on in one image, and the ground-truth boxes (P, 4) of the positive ones."""
        usable = self._usable(anchors, sample).nonzero().flatten()  # (n,)
        gt_boxes = sample.gt_instances.bboxes
        gt_index = self.assigner.assign(anchors[usable], gt_boxes, sample.ignored_boxes)  # (n,)
        sampled = self.sampler.sample(gt_index, generator=sample.generator(COUNT, gt_index.device))
        targets = gt_boxes[gt_index[sampled.positive]]
        return Sampled(usable[sampled.positive], usable[sampled.negative], sampled.avg_factor), targets

    def _usable(self, anchors: Tensor, sample: DetDataSample) -> Tensor:
        """(N,) bool: the anchors that may be trained on in this image."""
        usable = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if not self.train_cfg.get('use_padding', False):
            pad_h, pad_w = sample.pad_shape[:2]
            center = (anchors[:, :2] + anchors[:, 2:]) / 2
            # half a pixel below: the cell that begins just at the border lies in the padding, rounding or not
            usable &= (center < center.new_tensor([pad_w, pad_h]) - 0.5).all(dim=1)
        border = self.train_cfg.get('allowed_border', -1)
        if border >= 0:
            h, w = sample.img_shape[:2]
            usable &= (anchors[:, :2] >= -border).all(dim=1)
            usable &= (anchors[:, 2:] < anchors.new_tensor([w + border, h + border])).all(dim=1)
        return usable

    @torch.no_grad()
    def propose(
        self, preds: AnchorPredictions, sizes_hw: Sequence[tuple[int, int]], cfg: dict[str, Any]
    ) -> list[Proposals]:
        """Choose the best regions of a batch's images of `sizes_hw` without padding, to which regions are clipped.

        `cfg` has `nms_pre` (candidates of each level; all if not positive), `nms` within each level, `max_per_img` (no
        limit if not positive), `min_bbox_size` (both sides have to be longer; no limit if negative).
        """
        return [self._propose_one(preds, i, size, cfg) for i, size in enumerate(sizes_hw)]

    def _propose_one(
        self, preds: AnchorPredictions, image: int, image_size: tuple[int, int], cfg: dict[str, Any]
    ) -> Proposals:
        boxes, scores, levels = [], [], []
        for level, anchors in enumerate(preds.anchors):
            count = cfg.get('nms_pre', -1)
            # sym_min, shape: numbers that may be symbolic while exporting
            count = torch.sym_min(count, anchors.shape[0]) if count > 0 else anchors.shape[0]
            logits, best = preds.logits[level][image].topk(count)
            boxes.append(self.bbox_coder.decode(anchors[best], preds.deltas[level][image, best], image_size))
            scores.append(logits.sigmoid())
            levels.append(torch.full_like(best, level))
        box, score, level_of = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        limits = cfg.get('max_per_img', -1), cfg.get('min_bbox_size', -1)
        keep, score = grouped_nms(box, score, level_of, cfg['nms'], *limits)
        return Proposals(box[keep], score)


def _hidden_layers(in_channels: int, feat_channels: int, num_convs: int) -> nn.Module:
    """3x3 convolutions; a single one has the parameter names of a plain convolution."""
    if num_convs == 1:
        return nn.Conv2d(in_channels, feat_channels, 3, padding=1)
    widths = [in_channels] + [feat_channels] * num_convs
    return nn.Sequential(*(ConvModule(a, b, 3, padding=1, inplace=False) for a, b in pairwise(widths)))
