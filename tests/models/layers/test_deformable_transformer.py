"""What the decoder may be told: attention masks, positions by layer, references that learn; points per level."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddetr.models.layers import DeformableDetrTransformerDecoder, MultiScaleDeformableAttention
from ddetr.models.layers.deformable_transformer import token_centres
from ddetr.structures import DecoderInput, FlatFeatures, QueryGroup, separate_groups

C, HEADS, SHAPES = 16, 2, [(6, 8), (3, 4)]
TOKENS = sum(h * w for h, w in SHAPES)
LAYER = {
    'self_attn_cfg': {'embed_dims': C, 'num_heads': HEADS},
    'cross_attn_cfg': {'embed_dims': C, 'num_heads': HEADS, 'dropout': 0.0},
    'ffn_cfg': {'embed_dims': C, 'feedforward_channels': 24},
}


def features(batch=2):
    shapes = torch.tensor(SHAPES)
    starts = torch.tensor([0, SHAPES[0][0] * SHAPES[0][1]])
    mask = torch.zeros(batch, TOKENS, dtype=torch.bool)
    tokens = torch.randn(batch, TOKENS, C)
    ratios = torch.ones(batch, 2, 2) * torch.tensor([0.75, 1.0])
    return FlatFeatures(tokens, torch.zeros_like(tokens), mask, shapes, starts, ratios, SHAPES)


def decoder(**options):
    torch.manual_seed(1)
    made = DeformableDetrTransformerDecoder(3, LAYER, num_levels=2, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def queries(number, **fields):
    init = {'content': torch.randn(2, number, C), 'position': torch.randn(2, number, C)}
    reference = torch.rand(2, number, 4) * 0.4 + 0.3
    return DecoderInput(
        **{**init, 'reference_norm': reference, 'groups': (QueryGroup(slice(0, number)),), **fields}
    )


class Branches(nn.ModuleList):
    """Box branches as a head has them."""

    def __init__(self):
        super().__init__(nn.Linear(C, 4) for _ in range(3))

    def predict(self, layer, hidden, reference):
        return (self[layer](hidden) + (reference / (1 - reference)).log()).sigmoid()


def test_masked_groups_decode_as_if_alone():
    flat, model, branches = features(), decoder(refine=True), Branches()
    groups = (QueryGroup(slice(0, 4)), QueryGroup(slice(4, 9)))
    both = queries(9, self_attn_mask=separate_groups(groups, torch.device('cpu')), groups=groups)
    together = model(both, flat.tokens, flat, branches.predict)
    for part in (slice(0, 4), slice(4, 9)):
        alone = both._replace(
            content=both.content[:, part],
            position=both.position[:, part],
            reference_norm=both.reference_norm[:, part],
            self_attn_mask=None,
        )
        states = model(alone, flat.tokens, flat, branches.predict)
        torch.testing.assert_close(together.hidden[:, :, part], states.hidden)
        torch.testing.assert_close(together.boxes_cxcywh_norm[:, :, part], states.boxes_cxcywh_norm)
    unmasked = model(both._replace(self_attn_mask=None), flat.tokens, flat, branches.predict)
    assert (unmasked.hidden - together.hidden).abs().max() > 1e-3


@pytest.mark.parametrize('twice', [False, True])
def test_only_looking_forward_twice_trains_a_branch_through_the_next_layers_boxes(twice):
    flat, branches = features(), Branches()
    model = decoder(refine=True, look_forward_twice=twice)
    states = model(queries(5), flat.tokens, flat, branches.predict)
    states.boxes_cxcywh_norm[2].sum().backward()
    assert branches[2].weight.grad.norm() > 0
    assert (branches[1].weight.grad.norm() > 0) == twice
    assert branches[0].weight.grad.norm() == 0  # not further than one layer
    plain = decoder(refine=True)(queries_like := queries(5), flat.tokens, flat, branches.predict)
    again = model(queries_like, flat.tokens, flat, branches.predict)
    torch.testing.assert_close(again.boxes_cxcywh_norm, plain.boxes_cxcywh_norm)  # values are the same


def test_a_final_norm_is_for_the_head_only():
    flat, branches = features(), Branches()
    model = decoder(refine=True, post_norm_cfg={'type': 'LN'})
    init = queries(5)
    states = model(init, flat.tokens, flat, branches.predict)
    query, reference = init.content, init.reference_norm
    for i, layer in enumerate(model.layers):
        on_maps = reference[:, :, None] * flat.valid_ratios.repeat(1, 1, 2)[:, None]
        query = layer(query, init.position, on_maps, flat.tokens, flat)
        torch.testing.assert_close(states.hidden[i], model.norm(query))
        torch.testing.assert_close(
            states.boxes_cxcywh_norm[i], branches.predict(i, model.norm(query), reference)
        )
        reference = branches.predict(i, query, reference)


def test_positions_follow_the_reference_in_every_layer():
    flat, branches, seen = features(), Branches(), []
    model = decoder(refine=True, position_from_reference=True)
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append((args[1], args[2])))
    model(queries(5, position=None), flat.tokens, flat, branches.predict)
    for position, reference in seen:
        x, y, w, h = reference[:, :, 0].unbind(-1)
        encoded = []
        for coordinate in (y, x, w, h):  # 8 numbers each, sine and cosine in turn
            for i in range(C // 4):
                angle = coordinate * 2 * math.pi / 10000 ** (2 * i / (C // 2))
                encoded += [angle.sin(), angle.cos()]
        first, second = model.ref_point_head.layers
        expected = second(first(torch.stack(encoded, -1)).relu())
        torch.testing.assert_close(position, expected)
    assert len({float(position.detach().sum()) for position, _ in seen}) == 3


@pytest.mark.parametrize('numbers', [2, 4])
def test_levels_may_have_different_numbers_of_points(numbers):
    """Against one grid_sample for each level and head."""
    layer = MultiScaleDeformableAttention(C, HEADS, num_levels=2, num_points=[3, 1], dropout=0.0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    flat = features()
    query, position = torch.randn(2, 5, C), torch.randn(2, 5, C)
    reference = torch.rand(2, 5, 2, numbers) * 0.4 + 0.3
    found = layer(
        query, position, flat.tokens, reference, flat.spatial_shapes, flat.level_start_index, flat.pad_mask
    )

    q = query + position
    value = layer.value_proj(flat.tokens).view(2, TOKENS, HEADS, -1)
    offsets = layer.sampling_offsets(q).view(2, 5, HEADS, 4, 2)
    weights = layer.attention_weights(q).view(2, 5, HEADS, 4).softmax(-1)
    out = torch.zeros(2, 5, HEADS, C // HEADS)
    start = 0
    for level, ((height, width), points) in enumerate(zip(SHAPES, ([0, 1, 2], [3]), strict=True)):
        level_map = (
            value[:, start : start + height * width].permute(0, 2, 3, 1).reshape(2, HEADS, -1, height, width)
        )
        start += height * width
        for head in range(HEADS):
            for point in points:
                offset, center = offsets[:, :, head, point], reference[:, :, level, :2]
                if numbers == 2:
                    location = center + offset / torch.tensor([width, height])
                else:
                    location = center + offset / len(points) * reference[:, :, level, 2:] / 2
                sampled = F.grid_sample(level_map[:, head], location[:, :, None] * 2 - 1, align_corners=False)
                out[:, :, head] += sampled[..., 0].transpose(1, 2) * weights[:, :, head, point, None]
    torch.testing.assert_close(found, query + layer.output_proj(out.flatten(2)), rtol=1e-4, atol=1e-5)
    assert layer.sampling_offsets.bias.shape == (HEADS * 4 * 2,)


def test_points_that_do_not_match_the_levels_raise():
    with pytest.raises(
        ValueError, match=r'points=\[4, 4, 4\] must give at least one point for each of 2 levels'
    ):
        MultiScaleDeformableAttention(C, HEADS, num_levels=2, num_points=[4, 4, 4])


def test_token_centres_are_relative_to_the_unpadded_image():
    centres = token_centres(features(1))
    torch.testing.assert_close(centres[0, 0], torch.tensor([0.5 / 8 / 0.75, 0.5 / 6]))
