"""Contrastive denoising (DINO, Zhang et al., 2022, section 3.3): noised ground truth as additional decoder queries."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ddetr.models.heads.deformable_detr_head import inverse_sigmoid
from ddetr.structures import DecoderInput, Matching, QueryGroup, Samples
from ddetr.structures.effective_batch import effective_batch
from ddetr.utils.errors import ConfigError

PADDING = -1  # label of unused slots in images with fewer objects


class DenoisingQueries(NamedTuple):
    """Noised ground truth of a batch, in R groups of 2 T slots: T positives, then T negatives.

    T is the maximum number of objects per image in the effective batch. Slot t of either half belongs to object t of
    the image. Unused slots of images with fewer objects have zero content and are trained as background.
    """

    labels: Tensor  # (B, R * 2 T) int64, `PADDING` where empty
    boxes_cxcywh_norm: Tensor  # (B, R * 2 T, 4); 0.5 where empty
    num_groups: int  # R

    def matches(self) -> tuple[Matching, ...]:
        """Pairs of positive queries and their objects, for each image."""
        size, device = self.labels.shape[1] // self.num_groups, self.labels.device  # 2 T
        slots = self.labels.unflatten(1, (self.num_groups, 2, size // 2))  # (B, R, 2, T)
        starts = torch.arange(self.num_groups, device=device) * size  # (R,)
        objects = [torch.arange(n, device=device) for n in (slots[:, 0, 0] != PADDING).sum(1).tolist()]
        return tuple(Matching((starts[:, None] + o).flatten(), o.repeat(self.num_groups)) for o in objects)


class ContrastiveDenoising(nn.Module):
    """Contrastive denoising: adds noise to the ground truth and embeds its labels as queries.

    Args:
        num_classes: Number of classes, K.
        embed_dims: Embedding dimension, C.
        label_noise_scale: Twice the probability with which a label is replaced by a random one.
        box_noise_scale: Maximum shift of a positive's box edges, as a fraction of half the box side; negatives are
            shifted by one to two times as much.
        group_cfg: `dict(dynamic=True, num_dn_queries=100)` uses as many groups as fit that number of objects, at
            least one; `dict(dynamic=False, num_groups=...)` uses a fixed number.

    Raises:
        ConfigError: Unknown keys, `dynamic=False` without `num_groups`, or a negative noise scale.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int,
        label_noise_scale: float = 0.5,
        box_noise_scale: float = 1.0,
        group_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        groups = {'dynamic': True, 'num_groups': None, 'num_dn_queries': 100, **(group_cfg or {})}
        unknown = groups.keys() - {'dynamic', 'num_groups', 'num_dn_queries'}
        if unknown:
            raise ConfigError(f'model.dn_cfg.group_cfg has no key {min(unknown)!r}: remove it.')
        if not groups['dynamic'] and not groups['num_groups']:
            raise ConfigError('model.dn_cfg.group_cfg: dynamic=False needs num_groups.')
        if label_noise_scale < 0 or box_noise_scale < 0:
            raise ConfigError(
                f'model.dn_cfg: noise scales must not be negative, got {label_noise_scale=}, {box_noise_scale=}.'
            )
        self.num_classes = num_classes
        self.label_noise_scale, self.box_noise_scale = label_noise_scale, box_noise_scale
        self.num_groups: int | None = None if groups['dynamic'] else groups['num_groups']
        self.num_dn_queries: int = groups['num_dn_queries']
        self.label_embedding = nn.Embedding(num_classes, embed_dims)

    def reset_classes(self, num_classes: int) -> list[str]:
        """Reinitialise the label embedding for `num_classes` classes. Return the names of the new tensors."""
        old = self.label_embedding.weight
        self.num_classes = num_classes
        self.label_embedding = nn.Embedding(num_classes, old.shape[1], device=old.device, dtype=old.dtype)
        return ['label_embedding.weight']

    def append(
        self,
        init: DecoderInput,
        denoising: DenoisingQueries,
        eps: float,
        position_of: Callable[[Tensor], Tensor] | None = None,
    ) -> DecoderInput:
        """Append denoising queries to the decoder input.

        Args:
            init: Decoder input with Q queries.
            denoising: D denoising queries.
            eps: Epsilon of the inverse sigmoid applied to the boxes.
            position_of: Function from boxes (B, D, 4) to positions (B, D, C); needed if `init` has positions.
        """
        labels, num_queries = denoising.labels, init.content.shape[1]
        content = self.label_embedding(labels.clamp(min=0)).masked_fill((labels == PADDING)[..., None], 0.0)
        reference = inverse_sigmoid(denoising.boxes_cxcywh_norm, eps).sigmoid()
        position = init.position
        if position is not None and position_of is not None:
            position = torch.cat([position, position_of(reference).to(position.dtype)], 1)
        mask = denoising_mask(num_queries, denoising, labels.device)
        if init.self_attn_mask is not None:
            mask[:num_queries, :num_queries] = init.self_attn_mask
        total = slice(num_queries, num_queries + labels.shape[1])
        return init._replace(
            content=torch.cat([init.content, content.to(init.content.dtype)], 1),
            position=position,
            reference_norm=torch.cat([init.reference_norm, reference], 1),
            groups=(
                *init.groups,
                QueryGroup(total, 'dn_', denoising.matches(), per_object=denoising.num_groups),
            ),
            self_attn_mask=mask,
        )

    @torch.no_grad()
    def forward(self, samples: Samples) -> DenoisingQueries:
        """Draw noised queries for a batch."""
        device = self.label_embedding.weight.device
        counts = [len(sample.gt_instances) for sample in samples]
        # over the effective batch, so that groups and slots do not depend on how it is split
        most = max(effective_batch(samples).boxes_per_image)
        num_groups = self.num_groups or max(self.num_dn_queries // max(most, 1), 1)
        labels = torch.full((len(samples), num_groups, 2, most), PADDING, device=device)
        boxes = torch.full((*labels.shape, 4), 0.5, device=device)
        for b, sample in enumerate(samples):
            height, width = sample.img_shape[:2]
            true = sample.gt_instances.bboxes.to(device) / boxes.new_tensor(
                [width, height] * 2
            )  # (G, 4) xyxy
            generator = sample.generator('denoising', device)
            labels[b, :, :, : counts[b]] = self._noised_labels(
                sample.gt_instances.labels.to(device).expand(num_groups, 2, -1), generator
            )
            boxes[b, :, :, : counts[b]] = self._noised_boxes(true.expand(num_groups, 2, -1, -1), generator)
        return DenoisingQueries(labels.flatten(1), boxes.flatten(1, 3), num_groups)

    def _noised_labels(self, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Replace some labels by random ones, which may equal the original."""
        options: Any = {'device': labels.device, 'generator': generator}
        chosen = torch.rand(labels.shape, **options) < self.label_noise_scale / 2
        return torch.where(chosen, torch.randint(self.num_classes, labels.shape, **options), labels)

    def _noised_boxes(self, boxes_xyxy_norm: Tensor, generator: torch.Generator | None) -> Tensor:
        """Shift all four sides of boxes (R, 2, G, 4), further for the negatives at index 1; returns cx cy w h."""
        half_sides = (boxes_xyxy_norm[..., 2:] - boxes_xyxy_norm[..., :2]).repeat(1, 1, 1, 2) / 2
        shape, device = boxes_xyxy_norm.shape, boxes_xyxy_norm.device
        distance = torch.rand(shape, device=device, generator=generator)
        distance[:, 1] += 1
        sign = torch.randint(2, shape, device=device, generator=generator) * 2 - 1
        noised = boxes_xyxy_norm + sign * distance * half_sides * self.box_noise_scale
        return box_convert(noised.clamp(0, 1), 'xyxy', 'cxcywh')


def denoising_mask(num_queries: int, denoising: DenoisingQueries, device: torch.device) -> Tensor:
    """Self-attention mask (Q + D, Q + D) for matching queries followed by denoising queries; True = masked.

    Matching queries do not attend to denoising queries, and denoising groups do not attend to each other.
    """
    count = denoising.labels.shape[1]
    group = torch.arange(count, device=device) // max(count // denoising.num_groups, 1)
    group = torch.cat([torch.full((num_queries,), -1, device=device), group])
    return (group[None] >= 0) & (group[:, None] != group[None])
