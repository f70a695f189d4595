"""Region proposal network, the first stage of Faster R-CNN (Ren et al., "Faster R-CNN", section 3.1)."""

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
    """Predicts objectness and box deltas for every anchor.

    Args:
        in_channels: Input channels, the same at every level.
        feat_channels: Channels of the hidden layers.
        anchor_generator, bbox_coder, loss_cls, loss_bbox: Configs of the components; `loss_cls` must use sigmoid.
        num_classes: Must be 1 (object or not).
        num_convs: Number of hidden layers.
        reg_decoded_bbox: Whether `loss_bbox` compares decoded boxes (for IoU losses) instead of deltas.
        train_cfg: Dict with `assigner`, `sampler`, `allowed_border` (pixels by which training anchors may exceed the
            image; negative for no limit), `pos_weight` (weight of positive anchors in `loss_cls`; 1 if not positive)
            and `use_padding` (whether to train on anchors in the padding, as torchvision does; default False).

    Raises:
        ValueError: `loss_cls` uses softmax, `num_classes` is not 1, or the sampler adds ground-truth boxes.
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
                f'RPNHead needs num_classes=1 and loss_cls.use_sigmoid=True: got num_classes={num_classes}, '
                f'loss_cls.use_sigmoid={self.loss_cls.use_sigmoid}'
            )
        self.reg_decoded_bbox = reg_decoded_bbox
        self.train_cfg = train_cfg or {}
        if train_cfg:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg.get('sampler', {'type': 'PseudoSampler'}))
            if self.sampler.add_gt_as_proposals:
                raise ValueError('train_cfg.rpn.sampler: anchors are fixed, set add_gt_as_proposals=False')
        num_anchors = self.anchor_generator.num_base_anchors
        self.rpn_conv = _hidden_layers(in_channels, feat_channels, num_convs)
        self.rpn_cls = nn.Conv2d(feat_channels, num_anchors, 1)
        self.rpn_reg = nn.Conv2d(feat_channels, num_anchors * 4, 1)

    def forward(self, feats: Sequence[Tensor], input_size: tuple[int, int]) -> AnchorPredictions:
        """Predict for every anchor.

        Args:
            feats: L x (B, C, H_l, W_l) feature levels.
            input_size: (h, w) of the padded images.
        """
        level_sizes = [tuple(feat.shape[-2:]) for feat in feats]
        anchors = self.anchor_generator.grid_anchors(level_sizes, input_size, feats[0].device)
        logits, deltas = [], []
        for feat in feats:
            hidden = F.relu(self.rpn_conv(feat))
            logits.append(self.rpn_cls(hidden).permute(0, 2, 3, 1).flatten(1).float())  # (B, N_l)
            deltas.append(self.rpn_reg(hidden).permute(0, 2, 3, 1).reshape(feat.shape[0], -1, 4).float())
        return AnchorPredictions(logits, deltas, anchors)

    def loss(self, preds: AnchorPredictions, samples: list[DetDataSample]) -> dict[str, Tensor]:
        """`loss_rpn_cls` and `loss_rpn_bbox`, normalised by the sampled anchors of the effective batch."""
        logits, deltas = torch.cat(preds.logits, dim=1), torch.cat(preds.deltas, dim=1)  # (B, N), (B, N, 4)
        anchors = torch.cat(preds.anchors)  # (N, 4)
        cls_logits, labels, reg_pairs, here = [], [], [], 0
        for i, sample in enumerate(samples):
            sampled, gt_boxes = self._sample_anchors(anchors, sample)
            chosen = torch.cat([sampled.positive, sampled.negative])
            cls_logits.append(logits[i, chosen])
            # label 0: object, label 1 (the number of classes): background
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
        """Contribution of this batch to the normaliser of `loss`; see `FasterRCNN.count_ahead`."""
        anchors = torch.cat(preds.anchors)
        return {COUNT: sum(self._sample_anchors(anchors, sample)[0].avg_factor for sample in samples)}

    @torch.no_grad()
    def _sample_anchors(self, anchors: Tensor, sample: DetDataSample) -> tuple[Sampled, Tensor]:
        """Sample training anchors of one image from (N, 4), with the ground-truth boxes (P, 4) of the positives."""
        usable = self._usable(anchors, sample).nonzero().flatten()  # (n,)
        gt_boxes = sample.gt_instances.bboxes
        gt_index = self.assigner.assign(anchors[usable], gt_boxes, sample.ignored_boxes)  # (n,)
        sampled = self.sampler.sample(gt_index, generator=sample.generator(COUNT, gt_index.device))
        targets = gt_boxes[gt_index[sampled.positive]]
        return Sampled(usable[sampled.positive], usable[sampled.negative], sampled.avg_factor), targets

    def _usable(self, anchors: Tensor, sample: DetDataSample) -> Tensor:
        """Mask (N,) bool of the anchors that may be used for training in this image."""
        usable = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if not self.train_cfg.get('use_padding', False):
            pad_h, pad_w = sample.pad_shape[:2]
            center = (anchors[:, :2] + anchors[:, 2:]) / 2
            # half a pixel of tolerance: a cell that starts at the border counts as padding despite rounding
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
        """Select the best regions of each image.

        Args:
            preds: Predictions for a batch.
            sizes_hw: Unpadded (h, w) of each image, to which regions are clipped.
            cfg: Dict with `nms_pre` (candidates per level; all if not positive), `nms` (applied per level),
                `max_per_img` (no limit if not positive) and `min_bbox_size` (both sides must exceed it; no limit if
                negative).
        """
        return [self._propose_one(preds, i, size, cfg) for i, size in enumerate(sizes_hw)]

    def _propose_one(
        self, preds: AnchorPredictions, image: int, image_size: tuple[int, int], cfg: dict[str, Any]
    ) -> Proposals:
        boxes, scores, levels = [], [], []
        for level, anchors in enumerate(preds.anchors):
            count = cfg.get('nms_pre', -1)
            # sym_min and shape, because sizes may be symbolic during export
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
    """Stack of 3x3 convolutions; a single one keeps the parameter names of a plain convolution."""
    if num_convs == 1:
        return nn.Conv2d(in_channels, feat_channels, 3, padding=1)
    widths = [in_channels] + [feat_channels] * num_convs
    return nn.Sequential(*(ConvModule(a, b, 3, padding=1, inplace=False) for a, b in pairwise(widths)))
