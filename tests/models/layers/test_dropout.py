"""Dropout on a CPU, held against PyTorch's definition."""

import pytest
import torch
from torch.nn import functional as F

from ddetr.models.layers import transformer_blocks
from ddetr.models.layers.transformer_blocks import FFN, Dropout


@pytest.mark.parametrize('p', [0.1, 0.5, 1.0])
def test_elements_are_zeroed_with_probability_p_and_the_others_scaled(p):
    x = torch.full((333, 1001), 2.0, requires_grad=True)  # an odd number of elements
    out = Dropout(p)(x)
    kept = out != 0
    assert (out[kept] == 2 / (1 - round(p * 65536) / 65536 or 1)).all()
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    neighbours = (kept[:, 1:] & kept[:, :-1]).float().mean().item()  # independent of each other
    assert neighbours == pytest.approx((1 - p) ** 2, abs=0.005)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, out.detach() / 2)
    assert (x == 2).all()


def test_random_state_of_pytorch_determines_the_mask():
    layer, x = Dropout(0.3), torch.ones(50, 50)
    state = torch.get_rng_state()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_before_a_relu_gradients_are_those_of_both(dtype):
    x = torch.randn(40, 30).to(dtype).requires_grad_()
    torch.manual_seed(1)
    out = F.relu(Dropout(0.4, before_relu=True)(x * 1), inplace=True)
    torch.manual_seed(1)
    expected = Dropout(0.4)(F.relu(x))
    assert torch.equal(out, expected)
    weight = torch.randn(40, 30).to(dtype)
    gradients = [torch.autograd.grad((result * weight).sum(), x)[0] for result in (out, expected)]
    assert torch.equal(*gradients)
    assert gradients[0].any()


def test_evaluation_and_zero_probability_change_nothing():
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


@pytest.mark.parametrize('activation', ['ReLU', 'GELU'])
@pytest.mark.parametrize('drop', [0.0, 0.3])
@pytest.mark.parametrize('rows_at_a_time', [5, 1024])  # of 12
def test_ffn_in_training_equals_its_definition(activation, drop, rows_at_a_time, monkeypatch):
    monkeypatch.setattr(transformer_blocks, 'TILE_ROWS', rows_at_a_time)
    ffn = FFN(8, 32, act_cfg={'type': activation}, ffn_drop=drop)
    x = torch.randn(2, 6, 8, requires_grad=True)
    first, second = ffn.layers[0][0], ffn.layers[1]
    torch.manual_seed(2)
    out = ffn(x)
    torch.manual_seed(2)
    hidden = getattr(F, activation.lower())(first(x))
    expected = x + Dropout(drop)(second(Dropout(drop)(hidden)))
    torch.testing.assert_close(out, expected)
    parameters = [x, *ffn.parameters()]
    for gradient, true in zip(
        torch.autograd.grad(out.square().sum(), parameters),
        torch.autograd.grad(expected.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(gradient, true)


def test_ffn_calls_replaced_and_hooked_layers():
    """As libraries for low-rank adaptation and quantisation put them in place of `nn.Linear`."""

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    ffn, x = FFN(8, 32), torch.randn(6, 8)
    tiled, seen = ffn(x), []
    hook = ffn.layers[1].register_forward_hook(lambda module, args, out: seen.append(out))
    torch.testing.assert_close(ffn(x), tiled)
    assert len(seen) == 1
    hook.remove()
    before = ffn.layers[1]
    ffn.layers[1] = Doubled(32, 8)
    ffn.layers[1].load_state_dict(before.state_dict())
    torch.testing.assert_close(ffn(x) - x, 2 * (tiled - x))
    ffn.layers[1] = torch.nn.Linear(32, 8, bias=False)
    assert ffn(x).shape == x.shape
