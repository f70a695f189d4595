"""Export to OpenVINO via ONNX."""

import tempfile
from pathlib import Path

from torch import Tensor, nn

from ddetr.deployment.extras import require
from ddetr.deployment.info import METADATA_KEY, ExportInfo
from ddetr.deployment.options import ExportOptions

from . import onnx

SUFFIX = '.xml'


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Write `module` as an OpenVINO model: `path`, with the weights in a `.bin` file beside it.

    Args:
        module: A `DeployedDetector` in evaluation mode.
        example: Images (B, 3, H, W) and sizes (B, 2) to trace it with.
        options: Fixed sizes, opset and op of the intermediate ONNX file.
        path: `.xml` file to write.
    """
    require('openvino')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        onnx.write(module, example, options, file)
        from_onnx(file, path)


def from_onnx(file: Path, path: Path) -> None:
    """Convert an ONNX file."""
    import openvino

    openvino.save_model(openvino.convert_model(file), path, compress_to_fp16=False)


def annotate(path: Path, info: ExportInfo) -> None:
    """Write `info` to the model's metadata, replacing any existing entry."""
    import openvino

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        model = openvino.Core().read_model(path)
        model.set_rt_info(info.to_json(), [METADATA_KEY])
        openvino.save_model(model, Path(folder, path.name), compress_to_fp16=False)
        del model  # releases the memory-mapped weights file
        for suffix in ('.bin', '.xml'):
            Path(folder, path.name).with_suffix(suffix).replace(path.with_suffix(suffix))
