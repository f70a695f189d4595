"""OpenVINO, by way of ONNX."""

import tempfile
from pathlib import Path

from torch import Tensor, nn

from ddetr.deployment.extras import require
from ddetr.deployment.info import INPUT_NAMES, METADATA_KEY, ExportInfo
from ddetr.deployment.options import ExportOptions

from . import onnx

SUFFIX = '.xml'


def write(
    module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, info: ExportInfo, path: Path
) -> None:
    """Write `module` as an OpenVINO model: `path` and its weights, `.bin` beside it. Arguments as of `targets.onnx`."""
    require('openvino')
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        onnx.write(module, example, options, info, file)
        model = openvino.convert_model(file)
    model.set_rt_info(info.to_json(), [METADATA_KEY])
    openvino.save_model(model, path, compress_to_fp16=info.precision == 'fp16')
