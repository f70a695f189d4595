import torch

from ddetr.models.losses import BoundedIoULoss


def test_equals_the_bounds_of_the_paper_one_coordinate_at_a_time():
    corner = torch.rand(30, 2, dtype=torch.float64) * 10
    target = torch.cat([corner, corner + 1 + torch.rand(30, 2) * 20], dim=1)
    pred = target + torch.randn(30, 4) * 3
    pred[:, 2:] = torch.max(pred[:, 2:], pred[:, :2] + 0.5)
    expected = []
    for (px1, py1, px2, py2), (x1, y1, x2, y2) in zip(pred.tolist(), target.tolist(), strict=True):
        bounds = []
        for p1, p2, t1, t2 in ((px1, px2, x1, x2), (py1, py2, y1, y2)):
            side, shift = t2 - t1, abs((t1 + t2) / 2 - (p1 + p2) / 2)
            bounds.append(max(0.0, (side - 2 * shift) / (side + 2 * shift)))  # equation for x and y
            bounds.append(min((p2 - p1) / side, side / (p2 - p1)))  # for w and h
        for miss in (1 - bound for bound in bounds):
            expected.append(0.5 * miss**2 / 0.2 if miss < 0.2 else miss - 0.1)
    loss = BoundedIoULoss(eps=1e-12, loss_weight=10.0)(pred, target, avg_factor=7)
    torch.testing.assert_close(loss, torch.tensor(10 * sum(expected) / 7, dtype=torch.float64))
    assert BoundedIoULoss()(target, target) < 1e-6
