"""Inference of OpenVINO models."""

from pathlib import Path

import numpy as np

from ddetr.deployment.extras import require
from ddetr.deployment.info import INPUT_NAMES, METADATA_KEY, OUTPUT_NAMES, parse_info
from ddetr.utils.errors import InputError, first_line

from . import base


class Runtime(base.Runtime):
    """A detector in OpenVINO.

    Args:
        path: `.xml` file written by `ddetr export`, with its weights in a `.bin` file beside it.
        device: 'cpu', or another OpenVINO device such as 'gpu'.
        threads: Number of CPU threads; by default one per core.

    Attributes:
        info: Metadata of the file.

    Raises:
        InputError: The file cannot be read or was not written by ddetr, or OpenVINO or the device is missing.
    """

    def __init__(self, path: str | Path, device: str = 'cpu', threads: int | None = None) -> None:
        require('openvino')
        import openvino

        self.path, weights = str(path), Path(path).with_suffix('.bin')
        for file in (Path(path), weights):
            if not file.is_file():
                raise InputError(
                    f'{file} does not exist: an OpenVINO model needs a .xml file and a .bin file beside it.'
                )
        core = openvino.Core()
        # force float32: OpenVINO would use bfloat16 by default on CPUs that support it
        options = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
        options |= {} if threads is None else {'INFERENCE_NUM_THREADS': str(threads)}
        try:
            model = core.read_model(path, weights)
        except RuntimeError as error:
            raise InputError(f'{path} cannot be read by OpenVINO: {reason(error)}') from error
        key = [METADATA_KEY]
        self.info = parse_info(model.get_rt_info(key).astype(str) if model.has_rt_info(key) else None, path)
        try:
            self._compiled = core.compile_model(model, device.upper(), options)
        except RuntimeError as error:
            raise InputError(f'{path} cannot be compiled for device {device!r}: {reason(error)}') from error

    def _run(self, images: np.ndarray, sizes_hw: np.ndarray) -> list[np.ndarray]:
        results = self._compiled(dict(zip(INPUT_NAMES, (images, sizes_hw), strict=True)))
        return [results[name] for name in OUTPUT_NAMES]


def reason(error: RuntimeError) -> str:
    """Return OpenVINO's message without the source code locations at its start."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(('Exception from', 'Check '))]
    return (plain or [first_line(error)])[-1]
