"""Region features: RoIAlign (He et al., "Mask R-CNN") on the pyramid level that matches the region size."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torchvision.ops import RoIAlign, box_area

from ddetr.registry import MODELS

MODELS.register_module(name='RoIAlign', module=RoIAlign)


@MODELS.register_module()
class SingleRoIExtractor(BaseModule):
    """Pools each region from one feature level, coarser for larger regions (Lin et al., "FPN", equation 1).

    Args:
        roi_layer: `dict(type='RoIAlign', output_size=7, sampling_ratio=0, aligned=True)`. `sampling_ratio=0` takes as
            many samples as a bin has cells. `aligned=False`, torchvision's default, does not subtract the half pixel
            between a cell's corner and its centre.
        out_channels: Channels of the feature levels.
        featmap_strides: Strides of the levels to use, finest first.
        finest_scale: Square regions with sides below twice this value, in pixels, use the first level. 56 matches
            the paper's 224 at level 4.
    """

    def __init__(
        self,
        roi_layer: dict,
        out_channels: int,
        featmap_strides: Sequence[int],
        finest_scale: float = 56,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        options = {'sampling_ratio': 0, 'aligned': True, **roi_layer}
        self.roi_layers = nn.ModuleList(
            MODELS.build({**options, 'spatial_scale': 1 / s}) for s in featmap_strides
        )
        self.out_channels, self.finest_scale = out_channels, finest_scale
        size = options['output_size']
        self.output_size = (size, size) if isinstance(size, int) else tuple(size)

    def levels_of(self, boxes: Tensor) -> Tensor:
        """Feature level (n,) int64 of each box (n, 4)."""
        side = box_area(boxes).sqrt()
        level = (side / self.finest_scale + 1e-6).log2().floor()
        return level.clamp(0, len(self.roi_layers) - 1).long()

    def forward(self, feats: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool (R, C, s, s) features, image by image, from L x (B, C, H_l, W_l) and B x (n_i, 4) boxes in pixels."""
        image = torch.cat([box.new_full((box.shape[0], 1), i) for i, box in enumerate(boxes)])
        rois = torch.cat([image, torch.cat(list(boxes))], dim=1)  # (R, 5)
        level_of = self.levels_of(rois[:, 1:])  # (R,)
        pooled = feats[0].new_zeros(rois.shape[0], self.out_channels, *self.output_size)
        for level, (layer, feat) in enumerate(zip(self.roi_layers, feats, strict=False)):
            index = (level_of == level).nonzero().flatten()
            # in float32: half precision rounds coordinates around 1000 by up to half a pixel
            pooled = pooled.index_copy(0, index, layer(feat.float(), rois[index].float()).to(feat.dtype))
        return pooled
