"""DeformableDETRHead: how its branches start, what boxes are offsets from, how classes are renewed."""

import math

import pytest
import torch

from ddetr.models.heads import DeformableDETRHead
from ddetr.utils import ConfigError


def test_branches_are_shared_without_refinement():
    shared = DeformableDETRHead(5, 8, share_pred_layer=True, num_pred_layer=3)
    own = DeformableDETRHead(5, 8, share_pred_layer=False, num_pred_layer=3)
    assert len({id(branch) for branch in shared.cls_branches}) == 1
    assert len({id(branch) for branch in own.reg_branches}) == 3
    assert len(own.state_dict()) == len(shared.state_dict())  # checkpoints of the family repeat shared ones


def test_every_class_starts_at_one_percent_and_boxes_at_their_reference():
    head = DeformableDETRHead(5, 8, share_pred_layer=False, num_pred_layer=2, as_two_stage=True)
    hidden, reference = torch.zeros(1, 4, 8), torch.rand(1, 4, 4) * 0.8 + 0.1
    torch.testing.assert_close(head.cls_branches[1](hidden).sigmoid(), torch.full((1, 4, 5), 0.01))
    torch.testing.assert_close(head.predict_boxes(0, torch.randn(1, 4, 8), reference), reference)
    first = DeformableDETRHead(5, 8, share_pred_layer=False, num_pred_layer=2).predict_boxes(
        0, torch.randn(1, 4, 8), reference[..., :2]
    )
    torch.testing.assert_close(first[..., :2], reference[..., :2])
    torch.testing.assert_close(first[..., 2:], torch.full((1, 4, 2), 1 / (1 + math.exp(2))))


def test_boxes_are_offsets_in_logit_space():
    head = DeformableDETRHead(5, 8, num_pred_layer=2)
    torch.nn.init.normal_(head.reg_branches[0][-1].weight)
    hidden, reference = torch.randn(1, 4, 8), torch.rand(1, 4, 4) * 0.8 + 0.1
    delta = head.reg_branches[1](hidden)
    expected = 1 / (1 + (1 - reference) / reference * (-delta).exp())
    torch.testing.assert_close(head.predict_boxes(1, hidden, reference), expected)
    proposal = head.predict_proposals(hidden, (reference / (1 - reference)).log())[1]
    torch.testing.assert_close(proposal, expected)
    unusable = head.predict_proposals(hidden, torch.full((1, 4, 4), torch.inf))[1]
    assert (unusable == 1).all()


def test_softmax_losses_and_unknown_terms_raise():
    with pytest.raises(ValueError, match='DeformableDETRHead needs a sigmoid loss'):
        DeformableDETRHead(5, 8, loss_cls={'type': 'CrossEntropyLoss'})
    with pytest.raises(ConfigError, match='loss_terms cannot be combined with loss_cls'):
        DeformableDETRHead(5, 8, loss_cls={'type': 'FocalLoss'}, loss_terms=[{'type': 'VarifocalTerm'}])


def test_terms_are_configured_like_any_other_component():
    box = {'type': 'BoxTerm', 'loss': {'type': 'L1Loss', 'loss_weight': 5.0}}
    head = DeformableDETRHead(5, 8, loss_terms=[{'type': 'VarifocalTerm', 'loss_weight': 2.0}, box])
    assert [type(term).__name__ for term in head.criterion.terms] == ['VarifocalTerm', 'BoxTerm']
