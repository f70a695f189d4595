"""Export to ONNX with PyTorch's exporter."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddetr.deployment.info import INPUT_NAMES, METADATA_KEY, OUTPUT_NAMES, ExportInfo
from ddetr.deployment.options import ExportOptions
from ddetr.deployment.tracing import axis_names, quiet, trace
from ddetr.utils.errors import InputError, first_line

SUFFIX = '.onnx'
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Write `module` as an ONNX file.

    Args:
        module: A `DeployedDetector` in evaluation mode.
        example: Images (B, 3, H, W) and sizes (B, 2) to trace it with.
        options: Fixed sizes, opset and op.
        path: File to write.

    Raises:
        InputError: See `trace`; or PyTorch cannot convert an operator to ONNX.
    """
    from ddetr_ops.onnx import DOMAINS, translation_table

    graph = trace(module, example, options)
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                graph,
                dynamo=True,
                opset_version=options.opset,
                input_names=INPUT_NAMES,
                output_names=OUTPUT_NAMES,
                dynamic_shapes=axis_names(options),
                custom_translation_table=translation_table(options.opset, options.op),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f'the detector cannot be exported to ONNX opset {options.opset}: {first_line(error.__cause__ or error)}'
        ) from error
    assert program is not None
    simplify(program.model)
    if domain := DOMAINS.get(options.op):
        program.model.opset_imports[domain] = 1
    program.save(str(path))


def simplify(model: Any) -> None:
    """Fold constants and norms, and remove what is redundant, in place.

    These are the passes of PyTorch's exporter without the rule that turns slices into `Split`, which compares each node
    with every other.

    Args:
        model: An `onnx_ir.Model`.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True)
    rewrite(
        model,
        [
            rules.fuse_batchnorm_into_conv_rule, rules.collapse_slice_rule, rules.collapse_slice2_rule,
            rules.no_op_cast_rule, rules.cast_cast_rule, rules.no_op_expand_rule, rules.no_op_transpose_rule,
            rules.transpose_transpose_rule, rules.reshape_reshape_rule, rules.unsqueeze_unsqueeze_rule,
            rules.squeeze_reshape_1d_rule, rules.materialize_reshape_shape_rule,
            rules.remove_optional_bias_from_conv_rule,
        ],
    )  # fmt: skip
    for simplified in (
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        simplified(model)


def annotate(path: Path, info: ExportInfo) -> None:
    """Write `info` to the file's metadata, replacing any existing entry."""
    import onnx

    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=info.to_json())
    onnx.save(model, path)
