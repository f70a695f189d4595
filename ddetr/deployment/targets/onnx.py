"""Export to ONNX with PyTorch's exporter."""

from pathlib import Path

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
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f'the detector cannot be exported to ONNX opset {options.opset}: {first_line(error.__cause__ or error)}'
        ) from error
    assert program is not None
    if domain := DOMAINS.get(options.op):
        program.model.opset_imports[domain] = 1
    program.save(str(path))


def annotate(path: Path, info: ExportInfo) -> None:
    """Write `info` to the file's metadata, replacing any existing entry."""
    import onnx

    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=info.to_json())
    onnx.save(model, path)
