import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from ddetr.models.task_modules import MaxIoUAssigner
from ddetr.models.task_modules.max_iou_assigner import BACKGROUND, IGNORED


def boxes(count: int) -> torch.Tensor:
    corner = torch.randint(0, 12, (count, 2)).float()
    return torch.cat([corner, corner + torch.randint(2, 10, (count, 2))], dim=1)


def area(box: list[float]) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(a: list[float], b: list[float]) -> float:
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def by_loops(candidates, gts, crowds, rule) -> list[int]:
    """The rule as MMDetection's documentation states it, one pair of boxes at a time."""
    iou = [[overlap(g, c) / (area(g) + area(c) - overlap(g, c)) for c in candidates] for g in gts]
    in_crowd = [any(overlap(c, r) / area(c) > rule['ignore_iof_thr'] > 0 for r in crowds) for c in candidates]
    result = []
    for i, ignored in enumerate(in_crowd):
        best = max((iou[g][i] for g in range(len(gts))), default=0.0)
        if ignored:
            result.append(IGNORED)
        elif best >= rule['pos_iou_thr']:
            result.append(max(range(len(gts)), key=lambda g: iou[g][i]))
        else:
            result.append(BACKGROUND if best < rule['neg_iou_thr'] else IGNORED)
    if rule['match_low_quality']:
        for g in range(len(gts)):
            allowed = [iou[g][i] for i in range(len(candidates)) if not in_crowd[i]]
            best = max(allowed, default=-1.0)
            for i in range(len(candidates)):
                if not in_crowd[i] and iou[g][i] == best >= rule['min_pos_iou']:
                    result[i] = g  # the last ground truth wins
    return result


@pytest.mark.parametrize('match_low_quality', [True, False])
@pytest.mark.parametrize('ignore_iof_thr', [-1, 0.5])
def test_equals_the_rule_pair_by_pair(match_low_quality, ignore_iof_thr):
    rule = {
        'pos_iou_thr': 0.6,
        'neg_iou_thr': 0.3,
        'min_pos_iou': 0.2,
        'match_low_quality': match_low_quality,
        'ignore_iof_thr': ignore_iof_thr,
    }
    seen = set()
    for _ in range(10):
        candidates, gts, crowds = boxes(60).double(), boxes(5).double(), boxes(1).double()
        assigned = MaxIoUAssigner(**rule).assign(candidates, gts, crowds)
        assert assigned.tolist() == by_loops(candidates.tolist(), gts.tolist(), crowds.tolist(), rule)
        seen |= set(assigned.sign().tolist()) | set(assigned.tolist())
    assert {BACKGROUND, IGNORED, 0, 4} <= seen


def test_keep_best_gt_equals_torchvisions_matcher():
    ours = MaxIoUAssigner(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.0, keep_best_gt=True)
    theirs = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    forced_differently = 0
    for _ in range(20):
        candidates, gts = boxes(40), boxes(6)
        assigned = ours.assign(candidates, gts)
        assert torch.equal(assigned, theirs(box_iou(gts, candidates)))  # its -1 and -2 are ours
        ours.keep_best_gt = False
        forced_differently += int((ours.assign(candidates, gts) != assigned).sum())
        ours.keep_best_gt = True
    assert forced_differently > 0


def test_one_candidate_for_each_object_if_ties_are_not_taken():
    candidates = torch.tensor([[0.0, 0, 10, 4], [0, 6, 10, 10], [20, 20, 30, 30]])
    gt = torch.tensor([[0.0, 0, 10, 10]])  # equally far from the first two
    options = {'pos_iou_thr': 0.9, 'neg_iou_thr': 0.1, 'min_pos_iou': 0.1}
    assert MaxIoUAssigner(**options).assign(candidates, gt).tolist() == [0, 0, BACKGROUND]
    first = MaxIoUAssigner(**options, gt_max_assign_all=False).assign(candidates, gt)
    assert first.tolist() == [0, IGNORED, BACKGROUND]


def test_background_can_have_a_lower_bound():
    candidates = torch.tensor([[0.0, 0, 10, 2], [0, 0, 10, 4], [0, 0, 10, 9], [50, 50, 60, 60]])
    gt = torch.tensor([[0.0, 0, 10, 10]])
    assigner = MaxIoUAssigner(pos_iou_thr=0.8, neg_iou_thr=(0.1, 0.3), match_low_quality=False)
    assert assigner.assign(candidates, gt).tolist() == [BACKGROUND, IGNORED, 0, IGNORED]


def test_the_part_of_the_crowd_that_is_covered_can_count_instead():
    candidates = torch.tensor([[0.0, 0, 100, 100], [0, 0, 2, 2]])
    crowd = torch.tensor([[0.0, 0, 10, 10]])
    options = {'pos_iou_thr': 0.5, 'neg_iou_thr': 0.5, 'ignore_iof_thr': 0.5}
    no_gt = torch.zeros(0, 4)
    small_inside = MaxIoUAssigner(**options).assign(candidates, no_gt, crowd)
    assert small_inside.tolist() == [BACKGROUND, IGNORED]
    covers_it = MaxIoUAssigner(**options, ignore_wrt_candidates=False).assign(candidates, no_gt, crowd)
    assert covers_it.tolist() == [IGNORED, BACKGROUND]


def test_without_objects_all_is_background_and_no_candidate_gives_an_empty_result():
    assigner = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.5)
    assert assigner.assign(boxes(3), torch.zeros(0, 4)).tolist() == [BACKGROUND] * 3
    assert assigner.assign(torch.zeros(0, 4), boxes(2)).tolist() == []
