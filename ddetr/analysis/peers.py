"""Detectors of other projects with random weights and a ResNet-50, for speed comparisons."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddetr.utils.errors import ConfigError

MEAN, STD = 0.45, 0.225
LEARNING_RATE = 1e-4
PEERS = ('transformers', 'torchvision')
Step = Callable[[], Any]


def peer_steps(
    name: str, batch: dict[str, list], num_classes: int, device: torch.device
) -> tuple[Step, Step]:
    """Return inference and training steps on a batch for a peer's model in the default settings of its paper.

    Args:
        name: 'transformers' for Hugging Face's deformable transformer on four levels, 'torchvision' for its two-stage
            detector with a feature pyramid.
        batch: Batch of a data loader.
        num_classes: Number of classes without background.
        device: Device to run on.

    Raises:
        ConfigError: The name is unknown, or the package is not installed.
    """
    if name not in PEERS:
        raise ConfigError(f'--peers {name}: choose one of {", ".join(PEERS)}.')
    try:
        return (_transformers if name == 'transformers' else _torchvision)(batch, num_classes, device)
    except ImportError as error:
        raise ConfigError(f'--peers {name}: {error}; install it with `pip install {name}`.') from error


def _optimizer(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _transformers(batch: dict[str, list], num_classes: int, device: torch.device) -> tuple[Step, Step]:
    import transformers

    library: Any = transformers  # mypy cannot see through its decorated signatures
    config = library.DeformableDetrConfig(
        backbone_config=library.ResNetConfig(out_features=['stage2', 'stage3', 'stage4']),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        num_labels=num_classes,
        auxiliary_loss=True,
    )
    model = library.DeformableDetrForObjectDetection(config).to(device)
    images = [(image.float() / 255 - MEAN) / STD for image in batch['inputs']]
    pixels = torch.stack(images).to(device)  # (B, 3, H, W); all images have the same size
    mask = torch.ones_like(pixels[:, 0])
    sizes = torch.tensor([image.shape[1:] for image in images], device=device).repeat(1, 2).flip(1)  # w h w h
    labels = []
    for sample, size in zip(batch['data_samples'], sizes, strict=True):
        truth = sample.gt_instances.to(device)
        corners = truth.bboxes / size
        boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
        labels.append({'class_labels': truth.labels, 'boxes': boxes})

    @torch.no_grad()
    def detect() -> Any:
        out = model.eval()(pixel_values=pixels, pixel_mask=mask)
        return out.logits.sigmoid().flatten(1).topk(100)

    optimizer = _optimizer(model)

    def train() -> None:
        _update(optimizer, model.train()(pixel_values=pixels, pixel_mask=mask, labels=labels).loss)

    return detect, train


def _torchvision(batch: dict[str, list], num_classes: int, device: torch.device) -> tuple[Step, Step]:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    height, width = batch['inputs'][0].shape[1:]
    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes + 1,
        trainable_backbone_layers=3,
        min_size=min(height, width),
        max_size=max(height, width),
    ).to(device)
    images = [image.to(device).float() / 255 for image in batch['inputs']]
    truths = [sample.gt_instances.to(device) for sample in batch['data_samples']]
    targets = [{'boxes': truth.bboxes, 'labels': truth.labels + 1} for truth in truths]

    @torch.no_grad()
    def detect() -> Any:
        return model.eval()(images)

    optimizer = _optimizer(model)

    def train() -> None:
        losses: dict[str, Tensor] = model.train()(images, targets)
        _update(optimizer, torch.stack(list(losses.values())).sum())

    return detect, train
