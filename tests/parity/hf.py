"""Names of Hugging Face's live DETR modules in ours, for weights and gradients alike.

This map is the tests' own: it goes by the modules' attributes in memory, whereas `ddetr.weights` converts
what is written to files.
"""

import re

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr.structures import DetDataSample

LAYER_NAMES = {
    'encoder': {'self_attn_layer_norm': 'norms.0', 'final_layer_norm': 'norms.1'},
    'decoder': {
        'self_attn_layer_norm': 'norms.0',
        'encoder_attn_layer_norm': 'norms.1',
        'final_layer_norm': 'norms.2',
        'encoder_attn': 'cross_attn',
    },
}
PREFIXES = {
    'backbone.model.': 'backbone.',
    'query_position_embeddings.': 'query_embedding.',
    'reference_points.': 'reference_points_fc.',
    'enc_output.': 'memory_trans_fc.',
    'enc_output_norm.': 'memory_trans_norm.',
    'pos_trans.': 'pos_trans_fc.',
    'class_labels_classifier.': 'bbox_head.fc_cls.',
    'bbox_predictor.layers.0.': 'bbox_head.reg_ffn.layers.0.0.',
    'bbox_predictor.layers.1.': 'bbox_head.reg_ffn.layers.1.',
    'bbox_predictor.layers.2.': 'bbox_head.fc_reg.',
    'decoder.layernorm.': 'decoder.post_norm.',
}


def to_ours(name: str) -> str:
    """One of Hugging Face's parameter names -> ours; q, k and v projections keep their letter."""
    name = name.removeprefix('model.')
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    name = re.sub(r'^input_projection\.', 'neck.convs.0.conv.', name)
    name = re.sub(
        r'^input_proj\.(\d+)\.([01])\.', lambda m: f'neck.convs.{m[1]}.{("conv", "gn")[int(m[2])]}.', name
    )
    name = re.sub(r'^class_embed\.', 'bbox_head.cls_branches.', name)
    name = re.sub(
        r'^bbox_embed\.(\d+)\.layers\.(\d)\.',
        lambda m: f'bbox_head.reg_branches.{m[1]}.{2 * int(m[2])}.',
        name,
    )
    layer = re.match(r'^((encoder|decoder)\.layers\.\d+\.)(.*)', name)
    return layer[1] + _in_layer(layer[2], layer[3]) if layer else name


def _in_layer(part: str, name: str) -> str:
    name = name.replace('mlp.fc1.', 'ffn.layers.0.0.').replace('mlp.fc2.', 'ffn.layers.1.')
    for theirs, ours in LAYER_NAMES[part].items():
        name = re.sub(rf'^{theirs}\.', f'{ours}.', name)
    name = re.sub(r'^(self_attn|cross_attn)\.o_proj\.', r'\1.attn.out_proj.', name)
    return re.sub(r'^(self_attn|cross_attn)\.([qkv])_proj\.', r'\1.attn.\2_proj.', name)


def convert(tensors: dict[str, Tensor], num_backbone_levels: int) -> dict[str, Tensor]:
    """Rename all tensors and join the three projections of each attention."""
    renamed = {to_ours(name): value for name, value in tensors.items()}
    for name in [n for n in renamed if '.attn.q_proj.' in n]:
        parts = [renamed.pop(name.replace('q_proj', f'{letter}_proj')) for letter in 'qkv']
        kind = name.rsplit('.', 1)[1]
        renamed[name.replace(f'q_proj.{kind}', f'in_proj_{kind}')] = torch.cat(parts)
    for name in [n for n in renamed if n.startswith('neck.convs.')]:
        index = int(name.split('.')[2])
        if index >= num_backbone_levels:
            extra = name.replace(f'convs.{index}', f'extra_convs.{index - num_backbone_levels}')
            renamed[extra] = renamed.pop(name)
    return {n: v for n, v in renamed.items() if not re.match(r'^decoder\.(bbox|class)_embed', n)}


def named_losses(terms: dict[str, Tensor], weights: dict[str, float]) -> dict[str, Tensor]:
    """Hugging Face's unweighted terms (`loss_ce_0`, ...) under our names (`d0.loss_cls`, ...), weighted."""
    ours = {'loss_ce': 'loss_cls', 'loss_bbox': 'loss_bbox', 'loss_giou': 'loss_iou'}
    named = {}
    for name, value in terms.items():
        term = next((t for t in weights if name.startswith(t)), None)
        if term is not None:  # the others are measures, not losses
            suffix = name[len(term) :].removeprefix('_')
            prefix = {'': '', 'enc': 'enc_'}.get(suffix, f'd{suffix}.')
            named[prefix + ours[term]] = weights[term] * value
    return named


def randomize(model: nn.Module) -> None:
    """Fill every parameter and statistic with values that keep activations in a sane range.

    One-dimensional parameters lie around 1 (weights of norms) or 0 (biases), but in the backbone around 0.5 and 1:
    most of its ReLUs are then well away from their kink, where rounding would decide whether a gradient passes.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith('running_var'):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
            else:
                centre = (0.5, 1.0) if 'backbone' in name else (1.0, 0.0)
                noise = 0.1 * torch.randn(value.shape, generator=generator)
                value.copy_(noise + centre[name.endswith('bias')])


def padded_batch(
    num_classes: int, shapes: list[tuple[int, int]]
) -> tuple[Tensor, list[DetDataSample], Tensor, list[dict]]:
    """Random images of different sizes: padded pixels, our samples, and Hugging Face's mask and labels."""
    generator = torch.Generator().manual_seed(2)
    height, width = (max(s[i] for s in shapes) for i in (0, 1))
    images, mask = torch.zeros(len(shapes), 3, height, width), torch.zeros(len(shapes), height, width)
    samples, labels = [], []
    for i, (h, w) in enumerate(shapes):
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[i, :h, :w] = 1
        count = 3 + i
        corners = torch.rand(count, 2, 2, generator=generator).sort(1).values  # (count, 2, 2)
        boxes = (corners * torch.tensor([w, h])).flatten(1) + torch.tensor([0.0, 0.0, 2.0, 2.0])
        classes = torch.randint(num_classes, (count,), generator=generator)
        sample = DetDataSample(
            metainfo={'img_shape': (h, w), 'ori_shape': (h, w), 'batch_input_shape': (height, width)}
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=classes)
        samples.append(sample)
        centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        sides = torch.tensor([w, h, w, h])
        labels.append({'class_labels': classes, 'boxes': torch.cat([centre, size], 1) / sides})
    return images, samples, mask, labels
