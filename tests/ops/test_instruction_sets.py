"""The kernels for other instruction sets than this machine's choice."""

import os
import subprocess
import sys

import ddetr_ops
import pytest
import torch
from ddetr_ops import _library
from ddetr_ops.reference import ms_deform_attn_fused_reference, ms_deform_attn_reference

from tests.ops.cases import FusedInputs, Inputs, make_fused_inputs, make_inputs


@pytest.mark.skipif(_library.CPU_PROBLEM is not None, reason=str(_library.CPU_PROBLEM))
@pytest.mark.parametrize('isa', ['plain', 'widest'])
def test_other_instruction_sets_match_the_reference(isa, tmp_path):
    """A fresh process, since the choice is made once."""
    script = f"""
import torch, sys
from ddetr_ops import ms_deform_attn, ms_deform_attn_fused
inputs, fused, out, fused_out = torch.load({str(tmp_path / 'inputs.pt')!r})
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
    cast = lambda tensors: [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    torch.testing.assert_close(ms_deform_attn(*cast(inputs)).double(), out, atol=tolerance, rtol=0)
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in cast(fused)]
    result = ms_deform_attn_fused(*leaves)
    torch.testing.assert_close(result.double(), fused_out, atol=tolerance * 3, rtol=0)
    result.sum().backward()
print('same')
"""
    inputs, fused = make_inputs(channels=47), make_fused_inputs(4, channels=33)
    # Only what survives storage, so that nothing but the kernels' own error is left.
    inputs = Inputs(*(t.bfloat16().double() if t.is_floating_point() else t for t in inputs))
    fused = FusedInputs(*(t.bfloat16().double() if t.is_floating_point() else t for t in fused))
    expected = ms_deform_attn_reference(inputs.value, inputs.spatial_shapes, *inputs[3:])
    fused_expected = ms_deform_attn_fused_reference(fused.value, fused.spatial_shapes, *fused[3:])
    torch.save((tuple(inputs), tuple(fused), expected, fused_expected), tmp_path / 'inputs.pt')
    path = os.pathsep.join(
        [os.path.dirname(os.path.dirname(ddetr_ops.__file__)), os.environ.get('PYTHONPATH', '')]
    )
    environment = {**os.environ, 'DDETR_OPS_ISA': isa, 'PYTHONPATH': path}
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == 'same', run.stderr
