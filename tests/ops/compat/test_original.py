import subprocess
import sys

import pytest
import torch
from ddetr_ops.compat import original
from ddetr_ops.reference import ms_deform_attn_reference, sampling_locations_of

from tests.ops.cases import levels_of, make_inputs


def test_extension_functions_take_the_original_arguments():
    inputs = make_inputs()
    leaves = [t.clone().requires_grad_() for t in (inputs.value, *inputs[3:])]
    expected = ms_deform_attn_reference(leaves[0], inputs.spatial_shapes, *leaves[1:])
    grad_output = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, leaves, grad_output)
    torch.testing.assert_close(original.ms_deform_attn_forward(*inputs, 64), expected.detach())
    grads = original.ms_deform_attn_backward(*inputs, grad_output, 64)
    assert isinstance(grads, list)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad)


def test_im2col_step_need_not_divide_the_batch():
    inputs = make_inputs(batch=3)
    assert torch.equal(
        original.MSDeformAttnFunction.apply(*inputs, 2), original.ms_deform_attn_forward(*inputs, 64)
    )


def test_install_makes_the_import_work():
    script = (
        'import sys; sys.path[:0] = sys.argv[1:]; import ddetr_ops.compat.original as c; c.install(); '
        'import MultiScaleDeformableAttention as MSDA; print(MSDA.ms_deform_attn_forward.__module__)'
    )
    run = subprocess.run([sys.executable, '-c', script, *sys.path], capture_output=True, text=True)
    assert run.stdout.strip() == 'ddetr_ops.compat.original', run.stderr


def test_module_runs_a_script_that_imports_the_extension(tmp_path):
    (tmp_path / 'helper.py').write_text('ANSWER = 42\n')
    (tmp_path / 'main.py').write_text(
        'import sys\nimport helper\nimport MultiScaleDeformableAttention as MSDA\n'
        'print(__name__, sys.argv[1:], helper.ANSWER, MSDA.ms_deform_attn_forward.__module__)\n'
    )
    command = [sys.executable, '-m', 'ddetr_ops.compat', str(tmp_path / 'main.py'), '--lr', '1']
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout.strip() == "__main__ ['--lr', '1'] 42 ddetr_ops.compat.original", run.stderr
    run = subprocess.run(command[:3], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, 'usage: python -m ddetr_ops.compat SCRIPT [arguments]\n')


@pytest.mark.parametrize('reference_dim', [2, 4])
def test_layer_computes_the_papers_equation(reference_dim):
    torch.manual_seed(3)
    layer = original.MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    shapes, starts = levels_of(((5, 4), (2, 3)))
    query, tokens = torch.randn(2, 7, 32).double(), torch.randn(2, 26, 32).double()
    references = torch.rand(2, 7, 2, reference_dim).double()
    mask = torch.zeros(2, 26, dtype=torch.bool)
    mask[1, 20:] = True

    value = layer.value_proj(tokens).masked_fill(mask[..., None], 0).view(2, 26, 4, 8)
    offsets = layer.sampling_offsets(query).view(2, 7, 4, 2, 3, 2)
    weights = layer.attention_weights(query).view(2, 7, 4, 6).softmax(-1).view(2, 7, 4, 2, 3)
    locations = sampling_locations_of(references, offsets, shapes)
    expected = layer.output_proj(ms_deform_attn_reference(value, shapes, locations, weights))
    out = layer(query, references, tokens, shapes, starts, mask)
    torch.testing.assert_close(out, expected)
    noisy = tokens.masked_fill(mask[..., None], 1e6)
    assert torch.equal(layer(query, references, noisy, shapes, starts, mask), out)


def test_initial_offsets_look_around():
    """Head 0 to the right, head 2 of 8 down, point p at p + 1 pixels (x, y)."""
    layer = original.MSDeformAttn(d_model=64, n_levels=2, n_heads=8, n_points=3)
    offsets = layer.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    torch.testing.assert_close(offsets[0, 1], expected)
    torch.testing.assert_close(offsets[2, 0], expected.flip(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(offsets[1, 0, 2], torch.tensor([3.0, 3.0]))
    assert not layer.attention_weights.weight.any()


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match=r'30 channels .* are not divisible by 8 heads'):
        original.MSDeformAttn(d_model=30)
