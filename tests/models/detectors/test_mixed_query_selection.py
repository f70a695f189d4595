"""The option that the paper does not have: a learned content for each rank of the proposals."""

import torch

from tests.models.helpers import build, narrow_deformable_detr
from tests.parity.hf import padded_batch, randomize


def test_content_of_each_rank_is_learned_and_zeros_change_nothing(repo_root):
    config = narrow_deformable_detr(repo_root, 'deformable-detr-refine-twostage')
    plain = build(config)
    config.mixed_query_selection = True
    mixed = build(config)
    randomize(mixed)
    missing, unexpected = plain.load_state_dict(mixed.state_dict(), strict=False)
    assert not missing
    assert unexpected == ['query_embedding.weight']
    images, samples, *_ = padded_batch(7, [(128, 96), (80, 160)])
    torch.nn.init.zeros_(mixed.query_embedding.weight)
    with torch.no_grad():
        same, expected = (m(images, samples, mode='tensor') for m in (mixed, plain))
    torch.testing.assert_close(same.boxes_cxcywh_norm, expected.boxes_cxcywh_norm, rtol=0, atol=0)
    sum(mixed(images, samples, mode='loss').values()).backward()
    assert (mixed.query_embedding.weight.grad.norm(dim=1) > 0).all()
