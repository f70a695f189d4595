"""Padding masks of feature maps, and sine encodings of positions and boxes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pad_mask_on(feat: Tensor, image_mask: Tensor) -> Tensor:
    """Resize `image_mask` (B, H, W) to the resolution of `feat` (B, C, H_l, W_l) by nearest neighbour."""
    return F.interpolate(image_mask[None].float(), size=feat.shape[-2:])[0].bool()


class SinePositionalEncoding(nn.Module):
    """2-D sine encoding of positions in the unpadded area of a feature map (DETR, appendix A.4).

    Args:
        num_feats: Number of channels for each of y and x; the encoding has twice as many.
        temperature: Base of the wavelengths.
        normalize: Whether to divide positions by the unpadded size and multiply them by `scale`.
        scale: Range of normalised positions, in radians.
        eps: Added to the divisor to avoid division by zero.
        offset: Added to the 1-based positions before normalising; Deformable DETR uses -0.5, the pixel centres.
    """

    def __init__(
        self,
        num_feats: int,
        temperature: int = 10000,
        normalize: bool = False,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_feats, self.temperature = num_feats, temperature
        self.normalize, self.scale, self.eps, self.offset = normalize, scale, eps, offset

    def forward(self, pad_mask: Tensor) -> Tensor:
        """`pad_mask` (B, H, W) bool, True = padding -> (B, 2 * num_feats, H, W) float32, y before x."""
        valid = (~pad_mask).float()
        y, x = valid.cumsum(1), valid.cumsum(2)  # (B, H, W), 1-based
        if self.normalize:
            y = (y + self.offset) / (y[:, -1:, :] + self.eps) * self.scale
            x = (x + self.offset) / (x[:, :, -1:] + self.eps) * self.scale
        waves = [_waves(axis, self.num_feats, self.temperature) for axis in (y, x)]  # 2 x (B, H, W, F)
        return torch.cat(waves, -1).permute(0, 3, 1, 2)


def encode_boxes(boxes_cxcywh_norm: Tensor, num_feats: int, temperature: int = 10000) -> Tensor:
    """Sine encoding of boxes (B, Q, 4) -> (B, Q, 4 * num_feats), in the order of the coordinates.

    The two-stage variant derives its queries from it (Deformable DETR, appendix A.4).
    """
    return _waves(boxes_cxcywh_norm.float() * 2 * math.pi, num_feats, temperature).flatten(-2)


def _waves(angles: Tensor, num_feats: int, temperature: int) -> Tensor:
    """(...) -> (..., num_feats): alternating sine and cosine of `num_feats / 2` wavelengths."""
    index = torch.arange(num_feats, dtype=torch.float32, device=angles.device)
    wave_length = temperature ** (2 * (index // 2) / num_feats)
    phase = angles[..., None] / wave_length
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)
