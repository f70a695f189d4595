import pytest
import torch
from ddetr_ops.compat import mmcv
from ddetr_ops.compat.original import MSDeformAttn
from ddetr_ops.reference import ms_deform_attn_reference

from tests.ops.cases import levels_of, make_inputs


def test_functions_match_the_reference():
    inputs = make_inputs()
    expected = ms_deform_attn_reference(inputs.value, inputs.spatial_shapes, *inputs[3:])
    by_name = mmcv.multi_scale_deformable_attn_pytorch(inputs.value, inputs.spatial_shapes, *inputs[3:])
    torch.testing.assert_close(by_name, expected)
    torch.testing.assert_close(mmcv.MultiScaleDeformableAttnFunction.apply(*inputs, 64), expected)


@pytest.mark.parametrize('batch_first', [True, False])
def test_layer_adds_identity_and_position_in_either_layout(batch_first):
    torch.manual_seed(1)
    plain = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=3)
    layer = mmcv.MultiScaleDeformableAttention(32, 4, 2, 3, dropout=0.0, batch_first=batch_first)
    torch.nn.init.normal_(plain.sampling_offsets.weight)
    torch.nn.init.normal_(plain.attention_weights.weight)
    layer.load_state_dict(plain.state_dict())  # the same names
    shapes, starts = levels_of(((5, 4), (2, 3)))
    query, position, tokens = torch.randn(2, 7, 32), torch.randn(2, 7, 32), torch.randn(2, 26, 32)
    references, mask = torch.rand(2, 7, 2, 2), torch.rand(2, 26) > 0.7
    expected = plain(query + position, references, tokens, shapes, starts, mask) + query

    def turn(x):
        return x if batch_first else x.transpose(0, 1)

    out = layer(
        turn(query), key=None, value=turn(tokens), query_pos=turn(position), key_padding_mask=mask,
        reference_points=references, spatial_shapes=shapes, level_start_index=starts, attn_masks=None,
    )  # fmt: skip
    torch.testing.assert_close(turn(out), expected)


def test_dropout_is_mmcvs_default():
    assert mmcv.MultiScaleDeformableAttention().dropout.p == 0.1


def test_missing_reference_points_raise():
    with pytest.raises(
        ValueError, match='reference_points, spatial_shapes and level_start_index are required'
    ):
        mmcv.MultiScaleDeformableAttention()(torch.zeros(1, 1, 256))
