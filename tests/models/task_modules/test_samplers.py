import pytest
import torch

from ddetr.models.task_modules import OHEMSampler, PseudoSampler, RandomSampler
from ddetr.models.task_modules.max_iou_assigner import BACKGROUND, IGNORED

# 6 candidates of objects, 90 of background, 4 ignored
ASSIGNED = torch.tensor([0, 1, 2, 0, 1, 2] + [BACKGROUND] * 90 + [IGNORED] * 4)[
    torch.randperm(100, generator=torch.Generator().manual_seed(3))
]


def check_kinds(sampled) -> None:
    for index, right in (
        (sampled.positive, ASSIGNED[sampled.positive] >= 0),
        (sampled.negative, ASSIGNED[sampled.negative] == BACKGROUND),
    ):
        assert right.all()
        assert len(index.unique()) == len(index)


@pytest.mark.parametrize(
    ('num', 'pos_fraction', 'neg_pos_ub', 'expected'),
    [
        (20, 0.5, -1, (6, 14)),  # all objects, background fills the rest
        (8, 0.5, -1, (4, 4)),  # more objects than their part
        (200, 0.5, -1, (6, 90)),  # all there is
        (20, 0.5, 1.5, (6, 9)),  # at most 1.5 background candidates for an object
    ],
)
def test_quotas(num, pos_fraction, neg_pos_ub, expected):
    sampled = RandomSampler(num, pos_fraction, neg_pos_ub).sample(ASSIGNED)
    check_kinds(sampled)
    assert (len(sampled.positive), len(sampled.negative)) == expected
    assert sampled.avg_factor == sum(expected)


def test_the_bound_on_background_counts_one_object_where_there_is_none():
    nothing = torch.full((50,), BACKGROUND)
    assert len(RandomSampler(20, 0.5, neg_pos_ub=3).sample(nothing).negative) == 3


def test_every_candidate_is_drawn_equally_often():
    drawn = torch.zeros(100)
    for _ in range(2000):
        sampled = RandomSampler(8, 0.5).sample(ASSIGNED)
        drawn[torch.cat([sampled.positive, sampled.negative])] += 1
    # expected: 4 of 6 objects, 4 of 90 of background; 5 standard deviations of the binomial
    for kind, share in ((ASSIGNED >= 0, 4 / 6), (ASSIGNED == BACKGROUND, 4 / 90)):
        assert (drawn[kind] / 2000 - share).abs().max() < 5 * (share * (1 - share) / 2000) ** 0.5
    assert drawn[ASSIGNED == IGNORED].sum() == 0


def test_ohem_takes_the_hardest_of_each_kind():
    losses = torch.rand(100)
    sampled = OHEMSampler(10, 0.3).sample(ASSIGNED, lambda index: losses[index])
    check_kinds(sampled)
    for index, kind, count in (
        (sampled.positive, ASSIGNED >= 0, 3),
        (sampled.negative, ASSIGNED == BACKGROUND, 7),
    ):
        hardest = sorted(losses[kind].tolist(), reverse=True)[:count]
        assert losses[index].tolist() == hardest
    with pytest.raises(ValueError, match='not in train_cfg'):
        OHEMSampler(10, 0.3).sample(ASSIGNED)


def test_pseudo_sampler_takes_all_and_counts_objects():
    sampled = PseudoSampler().sample(ASSIGNED)
    check_kinds(sampled)
    assert (len(sampled.positive), len(sampled.negative), sampled.avg_factor) == (6, 90, 6)
