"""Names of torchvision's ResNets and of its Faster R-CNN with a feature pyramid."""

from .rules import Rule

RESNET_RULES = (
    Rule('conv1.{p}', 'backbone.conv1.{p}'),
    Rule('bn1.{p}', 'backbone.bn1.{p}'),
    Rule('layer1.{p}', 'backbone.layer1.{p}'),
    Rule('layer2.{p}', 'backbone.layer2.{p}'),
    Rule('layer3.{p}', 'backbone.layer3.{p}'),
    Rule('layer4.{p}', 'backbone.layer4.{p}'),
    Rule('fc.{p}', ''),  # ImageNet's classes
)

# The feature order is the same at the flattening before fc6: channels, rows, columns.
FASTER_RCNN_RULES = (
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
