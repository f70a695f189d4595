"""Weights of Faster R-CNN: what they show of the config, and torchvision's names. MMDetection's names are ours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddetr.weights import ClassRows, Layout, Rule, State, WeightFamily, WeightFormat

from ..backbones.resnet_weights import ANOTHER_BACKBONE, ResNetLayout, resnet_layout

# The feature order is the same at the flattening before fc6: channels, rows, columns.
_TORCHVISION = (
    Rule('backbone.body.{p}', 'backbone.{p}'),
    Rule('backbone.fpn.inner_blocks.{i}.0.{p}', 'neck.lateral_convs.{i}.conv.{p}'),
    Rule('backbone.fpn.layer_blocks.{i}.0.{p}', 'neck.fpn_convs.{i}.conv.{p}'),
    Rule('rpn.head.conv.0.0.{p}', 'rpn_head.rpn_conv.{p}'),
    Rule('rpn.head.cls_logits.{p}', 'rpn_head.rpn_cls.{p}'),
    Rule('rpn.head.bbox_pred.{p}', 'rpn_head.rpn_reg.{p}'),
    Rule('roi_heads.box_head.fc6.{p}', 'roi_head.bbox_head.shared_fcs.0.{p}'),
    Rule('roi_heads.box_head.fc7.{p}', 'roi_head.bbox_head.shared_fcs.1.{p}'),
    Rule('roi_heads.box_predictor.cls_score.{p}', 'roi_head.bbox_head.fc_cls.{p}'),
    Rule('roi_heads.box_predictor.bbox_pred.{p}', 'roi_head.bbox_head.fc_reg.{p}'),
    # files from before torchvision 0.15, such as the published ones
    Rule('backbone.fpn.inner_blocks.{i}.{p}', 'neck.lateral_convs.{i}.conv.{p}', written=False),
    Rule('backbone.fpn.layer_blocks.{i}.{p}', 'neck.fpn_convs.{i}.conv.{p}', written=False),
    Rule('rpn.head.conv.{p}', 'rpn_head.rpn_conv.{p}', written=False),
)


@dataclass(frozen=True)
class FasterRCNNLayout(Layout):
    """Faster R-CNN with a feature pyramid."""

    backbone: ResNetLayout = ANOTHER_BACKBONE

    def __str__(self) -> str:
        return f'Faster R-CNN ({self.backbone.name}), {self.num_classes} classes'

    def fitting_configs(self) -> tuple[str, ...]:
        """Of MMDetection's published model."""
        return ('configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',)

    def config_changes(self) -> dict[str, Any]:
        """Depth and classes where they are not the config's."""
        classes = {'model.roi_head.bbox_head.num_classes': self.num_classes}
        return {**self.backbone.config_changes(), **(classes if self.num_classes not in (0, 80) else {})}


def layout_of(state: State, hints: Mapping[str, Any]) -> FasterRCNNLayout:
    """Read the layout off tensors under our names; the last class row is the background."""
    bias = state.get('roi_head.bbox_head.fc_cls.bias')
    return FasterRCNNLayout(0 if bias is None else len(bias) - 1, resnet_layout(state))


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
            lambda *_: _TORCHVISION,
            landmarks=('roi_heads.box_head.fc6.weight', 'rpn.head.cls_logits.weight'),
            background='first',
        ),
    ),
)
