import shutil
import subprocess
import sys
from pathlib import Path

import ddetr_ops
import pytest
import torch
from ddetr_ops.reference import ms_deform_attn_reference

from tests.ops.cases import make_inputs

PACKAGE = Path(ddetr_ops.__file__).parent


@pytest.mark.parametrize(
    ('name', 'content', 'cause'),
    [
        (None, b'', r'_C\.so was not built\. The package has not been built'),
        ('_C.missing.txt', b'There is no compiler', r'_C\.so was not built\. There is no compiler'),
        ('_C.so', b'not a library', 'cannot be loaded.*(header|too short)'),
    ],
)
def test_op_without_its_library_warns_once_and_still_computes(name, content, cause, tmp_path):
    """A copy of the package without, or with a broken, library; in a process of its own."""
    shutil.copytree(PACKAGE, tmp_path / 'ddetr_ops', ignore=shutil.ignore_patterns('_C*', '__pycache__'))
    if name is not None:
        (tmp_path / 'ddetr_ops' / name).write_bytes(content)
    inputs = make_inputs()
    torch.save(tuple(inputs), tmp_path / 'inputs.pt')
    script = f"""
import re, sys, warnings
sys.path.insert(0, {str(tmp_path)!r})
import torch
from ddetr_ops import ms_deform_attn, ms_deform_attn_fused
inputs = torch.load({str(tmp_path / 'inputs.pt')!r})
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    for _ in range(2):
        out = ms_deform_attn(inputs[0].requires_grad_(), *inputs[1:])
        out.sum().backward()
assert len(seen) == 1, [str(w.message) for w in seen]
assert re.search({cause!r}, str(seen[0].message)), seen[0].message
assert 'plain PyTorch on cpu' in str(seen[0].message)
torch.save(out.detach(), {str(tmp_path / 'out.pt')!r})
"""
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = ms_deform_attn_reference(inputs.value, inputs.spatial_shapes, *inputs[3:])
    torch.testing.assert_close(torch.load(tmp_path / 'out.pt'), expected)
