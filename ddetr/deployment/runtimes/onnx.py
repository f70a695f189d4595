"""Inference of ONNX files with ONNX Runtime."""

from pathlib import Path

import numpy as np

from ddetr.deployment.extras import require
from ddetr.deployment.info import INPUT_NAMES, METADATA_KEY, OUTPUT_NAMES, parse_info
from ddetr.utils.errors import InputError, first_line

from . import base


class Runtime(base.Runtime):
    """A detector in ONNX Runtime.

    Args:
        path: File written by `ddetr export`.
        device: 'cpu', or 'cuda' with onnxruntime-gpu.
        threads: Number of CPU threads; by default one per core.

    Attributes:
        info: Metadata of the file.

    Raises:
        InputError: The file cannot be read or was not written by ddetr, or onnxruntime or its provider is missing.
    """

    def __init__(self, path: str | Path, device: str = 'cpu', threads: int | None = None) -> None:
        require('onnxruntime')
        import onnxruntime

        provider = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}.get(
            device.partition(':')[0]
        )
        available = onnxruntime.get_available_providers()
        if provider not in available:
            raise InputError(f'device={device!r}: this onnxruntime only supports {", ".join(available)}.')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        self.path = str(path)
        if not Path(path).is_file():
            raise InputError(f'{path} does not exist: check the path.')
        try:
            self._session = onnxruntime.InferenceSession(self.path, options, [provider])
        except Exception as error:  # onnxruntime has no common exception class
            raise InputError(f'{path} cannot be read by onnxruntime: {first_line(error)}') from error
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.info = parse_info(metadata.get(METADATA_KEY), path)

    def _run(self, images: np.ndarray, sizes_hw: np.ndarray) -> list[np.ndarray]:
        feeds = dict(zip(INPUT_NAMES, (images, sizes_hw), strict=True))
        return self._session.run(list(OUTPUT_NAMES), feeds)
