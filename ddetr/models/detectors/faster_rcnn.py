"""Faster R-CNN with a feature pyramid (Ren et al., 2015; Lin et al., 2017), the whole flow on one screen."""

from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.structures import AnchorPredictions, RoIPredictions

from .base_detector import BaseDetector, Samples
from .faster_rcnn_weights import FASTER_RCNN


@MODELS.register_module()
class FasterRCNN(BaseDetector):
    """Two stages: proposals from anchors, then a class and a refined box for each proposal.

    Args:
        backbone, neck, rpn_head, roi_head: configs of the parts; the heads get their parts of the next two.
        test_cfg: `rpn`, `rcnn`.
        train_cfg: `rpn`, `rpn_proposal` (how proposals are chosen in training; by default as in testing), `rcnn`.
            None for a model that only predicts.
        data_preprocessor, init_cfg: see mmengine's `BaseModel`.
    """

    weight_family = FASTER_RCNN

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        rpn_head: dict,
        roi_head: dict,
        test_cfg: dict,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        train_cfg = train_cfg or {}
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.rpn_head = MODELS.build({**rpn_head, 'train_cfg': train_cfg.get('rpn')})
        self.roi_head = MODELS.build(
            {**roi_head, 'train_cfg': train_cfg.get('rcnn'), 'test_cfg': test_cfg['rcnn']}
        )
        self.test_proposal_cfg = test_cfg['rpn']
        self.train_proposal_cfg = train_cfg.get('rpn_proposal', self.test_proposal_cfg)

    @property
    def num_classes(self) -> int:
        """See `BaseDetector`."""
        return self.roi_head.bbox_head.num_classes

    def reset_classes(self, num_classes: int) -> list[str]:
        """See `BaseDetector`."""
        head = self.roi_head.bbox_head
        agnostic = head.fc_reg.out_features == 4 and head.num_classes != 1
        head.num_classes = num_classes
        head.fc_cls = nn.Linear(head.fc_cls.in_features, num_classes + 1)
        nn.init.normal_(head.fc_cls.weight, std=0.01)
        nn.init.zeros_(head.fc_cls.bias)
        names = ['fc_cls.weight', 'fc_cls.bias']
        if not agnostic:
            head.fc_reg = nn.Linear(head.fc_reg.in_features, 4 * num_classes)
            nn.init.normal_(head.fc_reg.weight, std=0.001)
            nn.init.zeros_(head.fc_reg.bias)
            names += ['fc_reg.weight', 'fc_reg.bias']
        return [f'roi_head.bbox_head.{name}' for name in names]

    def loss(self, images: Tensor, samples: Samples) -> dict[str, Tensor]:
        """See `BaseDetector`: `loss_rpn_cls`, `loss_rpn_bbox`, `loss_cls`, `loss_bbox`, and `acc` in percent."""
        if not self.rpn_head.train_cfg:
            raise ValueError('this FasterRCNN was built without train_cfg, so it can only predict')
        feats = self.neck(self.backbone(images))  # L x (B, C, H_l, W_l)
        anchors = self.rpn_head(feats, images.shape[-2:])
        rpn_losses = self.rpn_head.loss(anchors, samples)
        proposals = self.rpn_head.propose(anchors, samples, self.train_proposal_cfg)
        return {**rpn_losses, **self.roi_head.loss(feats, proposals, samples)}

    def predict(self, images: Tensor, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        feats = self.neck(self.backbone(images))
        anchors = self.rpn_head(feats, images.shape[-2:])
        proposals = self.rpn_head.propose(anchors, samples, self.test_proposal_cfg)
        for sample, found in zip(samples, self.roi_head.predict(feats, proposals, samples), strict=True):
            if 'scale_factor' in sample:  # (w, h) = resized / original
                found.bboxes = found.bboxes / found.bboxes.new_tensor(sample.scale_factor).repeat(2)
            sample.pred_instances = found
        return samples

    def tensor(self, images: Tensor, samples: Samples) -> tuple[AnchorPredictions, RoIPredictions]:
        """See `BaseDetector`: both stages' predictions, the second's for the proposals of the first."""
        feats = self.neck(self.backbone(images))
        anchors = self.rpn_head(feats, images.shape[-2:])
        proposals = self.rpn_head.propose(anchors, samples, self.test_proposal_cfg)
        return anchors, self.roi_head(feats, [p.boxes_xyxy_px for p in proposals])
