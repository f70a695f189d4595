"""Half precision and int8 for exported files, with the quantisers of their runtimes.

Half precision keeps coordinates in float32: at 1,000 pixels, float16 is off by up to half a pixel. In ONNX,
convolutions and matrix products are computed in float16; in OpenVINO, weights are stored in float16 and the runtime
chooses. int8 is used for convolutions and matrix products with constant weights; activations are calibrated on images.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddetr.utils.errors import InputError

from .extras import require
from .info import INPUT_NAMES
from .proof import Bounds

PRECISIONS = ('fp32', 'fp16', 'int8')
# int8 changes individual detections, so only the AP is bounded. The bounds are absolute and apply to each metric.
BOUNDS = {
    'fp32': Bounds(),
    'fp16': Bounds(score=0.02, box_px=2.0, min_score=0.3),
    'int8': Bounds(np.inf, np.inf),
}
AP_BOUNDS = {'fp32': 1e-3, 'fp16': 5e-3, 'int8': 0.03}
IN_HALF = ('Conv', 'MatMul', 'Gemm', 'Relu')

Batches = Sequence[tuple[np.ndarray, np.ndarray]]  # inputs `images` and `sizes_hw` of the file


def check_precision(target: str, precision: str) -> None:
    """Raise an InputError unless a target supports this precision and its packages are installed."""
    if precision not in PRECISIONS:
        raise InputError(f'--precision {precision}: choose one of {", ".join(PRECISIONS)}.')
    if precision == 'fp32':
        return
    if (target, precision) not in CONVERTERS:
        known = ' and '.join(sorted({name for name, _ in CONVERTERS}))
        raise InputError(f'--precision {precision}: only {known} support it, {target} does not.')
    require(*{'onnx': ('onnx', 'onnxruntime'), 'openvino': ('openvino', 'nncf')}[target])


def convert(path: Path, target: str, precision: str, batches: Batches) -> None:
    """Convert a float32 file to another precision in place; its metadata may be lost.

    Args:
        path: File in the format of the target.
        target: 'onnx' or 'openvino'.
        precision: One of `PRECISIONS`.
        batches: Batches for int8 calibration.
    """
    if precision != 'fp32':
        CONVERTERS[target, precision](path, batches)


def _onnx_fp16(path: Path, batches: Batches) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(path)
    kept = sorted({node.op_type for node in model.graph.node} - set(IN_HALF))
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=kept)
    del half.graph.value_info[:]  # still has the types before the conversion
    onnx.save(half, path)


def _onnx_int8(path: Path, batches: Batches) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """Return the batches one by one."""

        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, np.ndarray]] = iter(_feeds(batches))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._feeds, None)

    quantised = path.with_name(f'{path.stem}.int8.onnx')
    quantize_static(
        str(path),
        str(quantised),
        Reader(),
        op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={'MatMulConstBOnly': True},  # products of two activations (attention) stay in float32
    )
    quantised.replace(path)


def _openvino_fp16(path: Path, batches: Batches) -> None:
    import openvino

    _save(openvino.Core().read_model(path), path, half=True)


def _openvino_int8(path: Path, batches: Batches) -> None:
    import nncf
    import openvino

    quantised = nncf.quantize(
        openvino.Core().read_model(path),
        nncf.Dataset(_feeds(batches)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(batches),
    )
    _save(quantised, path, half=False)


def _save(model: Any, path: Path, half: bool) -> None:
    """Overwrite an OpenVINO model whose files may still be memory-mapped."""
    import openvino

    new = path.with_name(f'{path.stem}.new.xml')
    openvino.save_model(model, new, compress_to_fp16=half)
    for suffix in ('.bin', '.xml'):
        new.with_suffix(suffix).replace(path.with_suffix(suffix))


def _feeds(batches: Batches) -> list[dict[str, np.ndarray]]:
    return [dict(zip(INPUT_NAMES, arrays, strict=True)) for arrays in batches]


CONVERTERS: dict[tuple[str, str], Callable[[Path, Batches], None]] = {
    ('onnx', 'fp16'): _onnx_fp16,
    ('onnx', 'int8'): _onnx_int8,
    ('openvino', 'fp16'): _openvino_fp16,
    ('openvino', 'int8'): _openvino_int8,
}
