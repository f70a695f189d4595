"""Faster R-CNN weights: infer the config from them, and convert from and to torchvision.

ddetr uses MMDetection's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddetr.weights import ClassRows, Layout, State, WeightFamily, WeightFormat
from ddetr.weights.rules import table

from ..backbones.resnet_weights import ANOTHER_BACKBONE, ResNetLayout, resnet_layout

# Both projects flatten features before fc6 in the same order: channels, rows, columns.
_TORCHVISION = {
    'backbone.body': 'backbone',
    'backbone.fpn.inner_blocks.{i}.0': 'neck.lateral_convs.{i}.conv',
    'backbone.fpn.layer_blocks.{i}.0': 'neck.fpn_convs.{i}.conv',
    'rpn.head.conv.0.0': 'rpn_head.rpn_conv',
    'rpn.head.cls_logits': 'rpn_head.rpn_cls',
    'rpn.head.bbox_pred': 'rpn_head.rpn_reg',
    'roi_heads.box_head.fc6': 'roi_head.bbox_head.shared_fcs.0',
    'roi_heads.box_head.fc7': 'roi_head.bbox_head.shared_fcs.1',
    'roi_heads.box_predictor.cls_score': 'roi_head.bbox_head.fc_cls',
    'roi_heads.box_predictor.bbox_pred': 'roi_head.bbox_head.fc_reg',
}
_BEFORE_0_15 = {  # names before torchvision 0.15, still used by the published files
    'backbone.fpn.inner_blocks.{i}': 'neck.lateral_convs.{i}.conv',
    'backbone.fpn.layer_blocks.{i}': 'neck.fpn_convs.{i}.conv',
    'rpn.head.conv': 'rpn_head.rpn_conv',
}


@dataclass(frozen=True)
class FasterRCNNLayout(Layout):
    """Layout of Faster R-CNN with a feature pyramid."""

    backbone: ResNetLayout = ANOTHER_BACKBONE

    def __str__(self) -> str:
        return f'Faster R-CNN ({self.backbone.name}), {self.num_classes} classes'

    def fitting_configs(self) -> tuple[str, ...]:
        """Config of MMDetection's published model."""
        return ('configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',) if self.backbone.depth else ()

    def config_changes(self) -> dict[str, Any]:
        """Overrides for depth and classes where they differ from the config."""
        classes = {'model.roi_head.bbox_head.num_classes': self.num_classes}
        return {**self.backbone.config_changes(), **(classes if self.num_classes not in (0, 80) else {})}


def layout_of(state: State, hints: Mapping[str, Any]) -> FasterRCNNLayout:
    """Infer the layout from tensors with ddetr names; the last class row is the background."""
    rows = len(state.get('roi_head.bbox_head.fc_cls.bias', (0,)))
    return FasterRCNNLayout(rows - 1, resnet_layout(state))


FASTER_RCNN = WeightFamily(
    name='Faster R-CNN',
    landmarks=('roi_head.bbox_head.fc_cls.weight', 'rpn_head.rpn_cls.weight'),
    layout_of=layout_of,
    class_rows=(
        ClassRows('roi_head.bbox_head.fc_cls.{p}', background=True),
        ClassRows('roi_head.bbox_head.fc_reg.{p}', per_class=4),
    ),
    formats=(
        WeightFormat('mmdet', "MMDetection's Faster R-CNN"),
        WeightFormat(
            'torchvision',
            "torchvision's Faster R-CNN",
            lambda *_: (*table('', '', _TORCHVISION), *table('', '', _BEFORE_0_15, written=False)),
            landmarks=('roi_heads.box_head.fc6.weight', 'rpn.head.cls_logits.weight'),
            background='first',
        ),
    ),
)
