"""A training step on the installed `ddetr_ops`: python tests/ops/train_step.py

Fails if the CPU library is missing, if anything warns, if a gradient differs from plain PyTorch's, or if the step
does not lower the loss. Used by ops/check_install.sh and by cibuildwheel.
"""

import warnings

import ddetr_ops
import torch
from ddetr_ops import _library
from ddetr_ops.compat.original import MSDeformAttn
from ddetr_ops.reference import ms_deform_attn_reference

SHAPES = torch.tensor([[16, 20], [8, 10]])
STARTS = torch.tensor([0, 320])


def compare_with_reference() -> None:
    leaves = [torch.randn(2, 400, 4, 8), torch.rand(2, 50, 4, 2, 4, 2), torch.rand(2, 50, 4, 2, 4)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    value, locations, weights = leaves
    out = ddetr_ops.ms_deform_attn(value, SHAPES, STARTS, locations, weights)
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    grads, expected_grads = (torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected))
    torch.testing.assert_close(grads, expected_grads, atol=1e-4, rtol=1e-4)


def train_one_step() -> tuple[float, float]:
    """Loss of one attention layer before and after a step of SGD."""
    layer = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=4)
    query, memory, target = torch.randn(2, 50, 32), torch.randn(2, 400, 32), torch.randn(2, 50, 32)
    references = torch.rand(2, 50, 2, 2)

    def loss() -> torch.Tensor:
        return (layer(query, references, memory, SHAPES, STARTS) - target).square().mean()

    before = loss()
    before.backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    return before.item(), loss().item()


if __name__ == '__main__':
    assert _library.CPU_PROBLEM is None, _library.CPU_PROBLEM
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        compare_with_reference()
        before, after = train_one_step()
    assert after < before, f'the loss rose from {before} to {after}'
    print(
        f'{ddetr_ops.__path__[0]}: the loss fell from {before:.4f} to {after:.4f}, PyTorch {torch.__version__}'
    )
