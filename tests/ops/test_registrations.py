import numpy as np
import pytest
import torch
from ddetr_ops import _library, ms_deform_attn, ms_deform_attn_fused
from ddetr_ops.reference import ms_deform_attn_reference

from tests.ops.cases import levels_of, make_fused_inputs, make_inputs

if _library.CPU_PROBLEM is not None:
    pytest.skip(_library.CPU_PROBLEM, allow_module_level=True)

OPS = torch.ops.ddetr_ops


def leaves(inputs):
    return [t.requires_grad_() if t.is_floating_point() else t for t in inputs]


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_opcheck(dtype):
    inputs, fused = make_inputs(dtype=dtype), make_fused_inputs(4, dtype=torch.float64)
    grad_output = torch.randn(2, 6, 16)
    torch.library.opcheck(OPS.ms_deform_attn_forward.default, leaves(inputs))
    torch.library.opcheck(
        OPS.ms_deform_attn_backward.default, (*make_inputs(dtype=dtype), grad_output.to(dtype), False)
    )
    torch.library.opcheck(OPS.ms_deform_attn_fused_forward.default, leaves(fused))
    torch.library.opcheck(
        OPS.ms_deform_attn_fused_backward.default, (*make_fused_inputs(4), grad_output.double(), False)
    )


def test_opcheck_of_levels_with_different_numbers_of_points():
    inputs = make_inputs()
    locations, weights = inputs.sampling_locations.flatten(3, 4), inputs.attention_weights.flatten(3)
    arguments = (*inputs[:3], locations, weights)
    torch.library.opcheck(OPS.ms_deform_attn_forward.default, (*arguments, [2, 4, 3]))
    grad_output = torch.randn(2, 6, 16, dtype=torch.float64)
    torch.library.opcheck(OPS.ms_deform_attn_backward.default, (*arguments, grad_output, False, [2, 4, 3]))


def test_double_backward_is_refused():
    inputs = make_inputs()
    value = inputs.value.requires_grad_()
    out = ms_deform_attn(*inputs)
    (grad,) = torch.autograd.grad(out.square().sum(), value, create_graph=True)
    with pytest.raises(RuntimeError, match='does not support double backward'):
        grad.sum().backward()


def test_compile_has_no_graph_break_and_the_same_gradients():
    def attend(value, locations, weights, shapes, starts):
        return ms_deform_attn(value.sin(), shapes, starts, locations * 0.5 + 0.2, weights.softmax(-1)).cos()

    inputs = make_inputs(dtype=torch.float32)
    results = []
    for function in (attend, torch.compile(attend, fullgraph=True, backend='aot_eager')):
        tensors = [t.detach().clone().requires_grad_() for t in (inputs.value, *inputs[3:])]
        out = function(*tensors, *inputs[1:3])
        results.append((out, *torch.autograd.grad(out.sum(), tensors)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_compiled_fused_form_takes_other_sizes():
    compiled = torch.compile(ms_deform_attn_fused, fullgraph=True, backend='aot_eager', dynamic=True)
    for sizes in ({}, {'batch': 3, 'queries': 4}, {'shapes': ((4, 4), (2, 3), (1, 2))}):
        inputs = make_fused_inputs(4, **sizes)
        torch.testing.assert_close(compiled(*inputs), ms_deform_attn_fused(*inputs))


class Attention(torch.nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.fused = fused

    def forward(self, *inputs):
        return ms_deform_attn_fused(*inputs) if self.fused else ms_deform_attn(*inputs)


def test_export_keeps_the_op():
    inputs = tuple(make_inputs(dtype=torch.float32))
    program = torch.export.export(Attention(False), inputs)
    targets = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert 'ddetr_ops.ms_deform_attn_forward.default' in targets
    torch.testing.assert_close(program.module()(*inputs), ms_deform_attn(*inputs))


@pytest.mark.parametrize(('opset', 'form'), [(18, 'gridsample'), (20, 'gridsample'), (18, 'gather')])
@pytest.mark.parametrize('reference_dim', [None, 2, 4])
def test_onnxruntime_runs_the_export(opset, form, reference_dim, tmp_path):
    runtime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    from ddetr_ops.onnx import translation_table

    if reference_dim is None:
        inputs = tuple(make_inputs(dtype=torch.float32))
        other = make_inputs(((4, 6), (2, 3), (2, 2)), batch=3, queries=5, dtype=torch.float32, seed=5)
        names = ('value', 'shapes', 'starts', 'locations', 'weights')
    else:
        inputs = tuple(make_fused_inputs(reference_dim, dtype=torch.float32))
        sizes = {'shapes': ((4, 6), (2, 3), (2, 2)), 'batch': 3, 'queries': 5, 'seed': 5}
        other = make_fused_inputs(reference_dim, dtype=torch.float32, **sizes)
        names = ('value', 'shapes', 'starts', 'references', 'offsets', 'logits')
    batch, tokens, queries = (torch.export.Dim(name) for name in ('batch', 'tokens', 'queries'))
    dynamic = ({0: batch, 1: tokens}, None, None, *({0: batch, 1: queries} for _ in inputs[3:]))
    path = tmp_path / 'attention.onnx'
    torch.onnx.export(
        Attention(reference_dim is not None), inputs, str(path), dynamo=True, opset_version=opset, verbose=False,
        input_names=names, dynamic_shapes=(dynamic,), custom_translation_table=translation_table(opset, form),
    )  # fmt: skip
    session = runtime.InferenceSession(str(path))
    for tensors in (inputs, other):
        (out,) = session.run(None, {n: t.numpy() for n, t in zip(names, tensors, strict=True)})
        expected = Attention(reference_dim is not None)(*tensors).numpy()
        np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize(
    ('form', 'name', 'domain', 'index_type'),
    [
        ('node', 'ms_deform_attn', 'ddetr_ops', 7),
        ('tensorrt', 'MultiscaleDeformableAttnPlugin_TRT', 'trt.plugins', 6),
    ],
)
def test_the_op_is_exported_as_one_node(form, name, domain, index_type):
    """With the inputs that the kernel documents, and its integer type (7: int64, 6: int32)."""
    pytest.importorskip('onnxscript')
    import onnx
    from ddetr_ops.onnx import translation_table
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    inputs = tuple(make_fused_inputs(2, dtype=torch.float32))
    program = torch.onnx.export(
        Attention(True), inputs, dynamo=True, opset_version=18, verbose=False,
        custom_translation_table=translation_table(18, form),
    )  # fmt: skip
    program.model.opset_imports[domain] = 1
    model = program.model_proto
    (node,) = [node for node in model.graph.node if node.op_type == name]
    assert node.domain == domain
    assert len(node.input) == 5
    types = []

    class Kernel(OpRun):
        op_domain = domain

        def _run(self, value, shapes, starts, locations, weights):
            types.extend(onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for array in (shapes, starts))
            arrays = (
                torch.from_numpy(np.array(array)) for array in (value, shapes, starts, locations, weights)
            )
            out = ms_deform_attn(*arrays).numpy()
            return (out.reshape(*out.shape[:2], *value.shape[2:]) if form == 'tensorrt' else out,)

    Kernel.__name__ = name
    feeds = {value.name: tensor.numpy() for value, tensor in zip(model.graph.input, inputs, strict=True)}
    (out,) = ReferenceEvaluator(model, new_ops=[Kernel]).run(None, feeds)
    assert types == [index_type] * 2
    np.testing.assert_allclose(out, Attention(True)(*inputs).numpy(), atol=2e-5)


def test_autocast_stores_the_value_in_low_precision_and_keeps_locations():
    inputs = make_inputs(dtype=torch.float32, channels=32)
    value = inputs.value.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = ms_deform_attn(value, *inputs[1:])
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ms_deform_attn(value.bfloat16(), *inputs[1:]))
    out.float().sum().backward()
    assert value.grad is not None
    assert value.grad.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):  # what linear layers give under autocast
        fused = make_fused_inputs(2, dtype=torch.float32)
        low = [t.bfloat16() if t.is_floating_point() else t for t in fused]
        mixed = ms_deform_attn_fused(*low[:3], fused.reference_points, *low[4:])
    assert mixed.dtype == torch.bfloat16
    assert (mixed.float() - ms_deform_attn_fused(*fused)).abs().max() < 0.1


def test_vmap_equals_a_loop():
    inputs = make_inputs(dtype=torch.float64)
    values = torch.randn(3, *inputs.value.shape, dtype=torch.float64)
    locations = torch.rand(*inputs.sampling_locations.shape, 3, dtype=torch.float64)
    mapped = torch.vmap(
        lambda v, x: ms_deform_attn(v, *inputs[1:3], x, inputs.attention_weights), in_dims=(0, -1)
    )(values, locations)
    for i in range(3):
        one = ms_deform_attn(
            values[i], *inputs[1:3], locations[..., i].contiguous(), inputs.attention_weights
        )
        torch.testing.assert_close(mapped[i], one)


def test_vmap_over_the_sizes_of_the_maps_is_refused():
    inputs = make_inputs()
    shapes = inputs.spatial_shapes.expand(2, 3, 2)
    with pytest.raises(ValueError, match='cannot be vmapped over'):
        torch.vmap(lambda s: ms_deform_attn(inputs.value, s, *inputs[2:]))(shapes)


def test_meta_tensors_have_the_right_shape():
    inputs = [t.to('meta') for t in make_inputs()]
    out = ms_deform_attn(*inputs)
    assert out.device.type == 'meta'
    assert out.shape == (2, 6, 16)


def test_batched_gradients_equal_a_loop():
    inputs = make_inputs(dtype=torch.float64)
    value = inputs.value.requires_grad_()
    out = ms_deform_attn(*inputs)
    grad_outputs = torch.randn(3, *out.shape, dtype=torch.float64)
    (batched,) = torch.autograd.grad(out, value, grad_outputs, is_grads_batched=True, retain_graph=True)
    for grad_output, grad in zip(grad_outputs, batched, strict=True):
        torch.testing.assert_close(grad, torch.autograd.grad(out, value, grad_output, retain_graph=True)[0])


@pytest.mark.parametrize('wanted', range(8))
def test_only_the_gradients_that_are_asked_for_are_computed(wanted):
    mask = [bool(wanted >> i & 1) for i in range(3)]
    inputs, grad_output = make_inputs(channels=32), torch.randn(2, 6, 64, dtype=torch.float64)
    everything = OPS.ms_deform_attn_backward(*inputs, grad_output)
    grads = OPS.ms_deform_attn_backward(*inputs, grad_output, output_mask=mask)
    for grad, full, want in zip(grads, everything, mask, strict=True):
        assert torch.equal(grad, full) if want else grad.numel() == 0
    fused = make_fused_inputs(4, channels=32)
    everything = OPS.ms_deform_attn_fused_backward(*fused, grad_output)
    for reference in (False, True):
        fused_mask = [mask[0], reference, *mask[1:]]
        grads = OPS.ms_deform_attn_fused_backward(*fused, grad_output, output_mask=fused_mask)
        for grad, full, want in zip(grads, everything, fused_mask, strict=True):
            assert torch.equal(grad, full) if want else grad.numel() == 0


def test_gradients_flow_to_what_asks_for_them_only():
    """Frozen values, as with a frozen backbone: the locations still learn."""
    shapes, starts = levels_of(((4, 5),))
    inputs = make_inputs(((4, 5),))
    locations = inputs.sampling_locations.requires_grad_()
    ms_deform_attn(inputs.value, shapes, starts, locations, inputs.attention_weights).sum().backward()
    again = inputs.sampling_locations.detach().requires_grad_()
    ms_deform_attn_reference(inputs.value, shapes, again, inputs.attention_weights).sum().backward()
    torch.testing.assert_close(locations.grad, again.grad)
    assert inputs.value.grad is None
