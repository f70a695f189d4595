"""GridDetector: each cell of the last feature map predicts one object. A detector in one file outside the package."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.detectors import BaseDetector
from ddetr.models.set_prediction import build_criterion, set_pred_instances
from ddetr.registry import MODELS
from ddetr.structures import ImageBatch, Samples, SetPredictions
from ddetr.weights import ClassRows, Layout, Rule, State, WeightFamily, WeightFormat

STRIDE = 16


@MODELS.register_module()
class FourConvs(BaseModule):
    """Four convolutions of stride 2."""

    def __init__(self, width: int = 32, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.out_channels = [width]
        widths = [3, width // 4, width // 2, width, width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / 16, W / 16)."""
        for conv in self.convs:
            images = conv(images).relu()
        return images


@MODELS.register_module()
class GridHead(BaseModule):
    """Class logits and a box for each cell."""

    def __init__(self, num_classes: int, in_channels: int, train_cfg: dict | None = None) -> None:
        super().__init__()
        losses = {
            'loss_cls': {'type': 'FocalLoss', 'loss_weight': 2.0},
            'loss_bbox': {'type': 'L1Loss', 'loss_weight': 5.0},
            'loss_iou': {'type': 'GIoULoss', 'loss_weight': 2.0},
        }
        self.criterion = build_criterion(losses, losses, None, train_cfg)
        self.box = nn.Conv2d(in_channels, 4, 1)
        self.reset_classes(num_classes)

    def reset_classes(self, num_classes: int) -> list[str]:
        """A new classification layer; the names of its tensors."""
        self.num_classes = num_classes
        self.classes = nn.Conv2d(self.box.in_channels, num_classes, 1, device=self.box.weight.device)
        nn.init.constant_(self.classes.bias, bias_init_with_prob(0.01))
        return ['classes.weight', 'classes.bias']

    def forward(self, feat: Tensor, batch: ImageBatch) -> SetPredictions:
        """(B, C, h, w) -> one set of h * w queries; cells under padding never score."""
        sizes = feat.new_tensor([(w, h) for h, w in batch.sizes_hw])[:, None]  # (B, 1, 2)
        rows, columns = (torch.arange(n, device=feat.device) + 0.5 for n in feat.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing='ij')
        centres = (
            torch.stack([x, y], -1).flatten(0, 1) * STRIDE / sizes
        )  # (B, h * w, 2), relative to the image
        raw = self.box(feat).flatten(2).transpose(1, 2)  # (B, h * w, 4)
        offsets = (raw[..., :2].sigmoid() - 0.5) * 2 * STRIDE / sizes
        boxes = torch.cat([centres + offsets, raw[..., 2:].sigmoid()], -1)
        logits = self.classes(feat).flatten(2).transpose(1, 2)  # (B, h * w, K)
        logits = logits.masked_fill((centres > 1).any(-1, keepdim=True), -50.0)
        return SetPredictions(logits[None], boxes[None])


@dataclass(frozen=True)
class GridLayout(Layout):
    """What a checkpoint shows of the config."""

    width: int = 0

    def __str__(self) -> str:
        return f'GridDetector of width {self.width}, {self.num_classes} classes'


def layout_of(state: State, hints: object) -> GridLayout:
    """Read the layout off tensors under the names that they have in this file."""
    return GridLayout(len(state['bbox_head.classes.bias']), len(state['backbone.convs.3.bias']))


GRID = WeightFamily(
    name='GridDetector',
    landmarks=('backbone.convs.3.weight', 'bbox_head.classes.weight'),
    layout_of=layout_of,
    class_rows=(ClassRows('bbox_head.classes.{p}'),),
    formats=(
        WeightFormat(
            'original',
            "GridDetector's first version",
            rules=lambda layout, style: (
                Rule('net.{i}.{p}', 'backbone.convs.{i}.{p}'),
                Rule('cls.{p}', 'bbox_head.classes.{p}'),
                Rule('reg.{p}', 'bbox_head.box.{p}'),
            ),
            landmarks=('net.3.weight', 'cls.weight', 'reg.weight'),
        ),
    ),
)


@MODELS.register_module()
class GridDetector(BaseDetector):
    """Backbone and head, with each object matched to one cell."""

    weight_family = GRID

    def __init__(
        self,
        backbone: dict,
        bbox_head: dict,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        channels = self.backbone.out_channels[-1]
        self.bbox_head = MODELS.build({**bbox_head, 'in_channels': channels, 'train_cfg': train_cfg})

    def tensor(self, batch: ImageBatch) -> SetPredictions:
        """See `BaseDetector`."""
        return self.bbox_head(self.backbone(batch.images), batch)

    def loss(self, batch: ImageBatch, samples: Samples) -> dict[str, Tensor]:
        """See `BaseDetector`."""
        return self.bbox_head.criterion(self.tensor(batch), samples)

    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        return set_pred_instances(self.tensor(batch), samples, max_per_img=100, use_sigmoid=True)
