"""OpenVINO."""

from pathlib import Path

import numpy as np

from ddetr.deployment.extras import require
from ddetr.deployment.info import METADATA_KEY
from ddetr.deployment.loading import Found, read_info
from ddetr.utils.errors import InputError, first_line


class Runtime:
    """An OpenVINO model, `.xml` with its `.bin` beside it; see `ddetr.deployment.load`.

    Args:
        path: The `.xml` file.
        device: 'cpu', or a device of OpenVINO ('GPU', 'AUTO').
        threads: Of the CPU.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None) -> None:
        require('openvino')
        import openvino

        weights = path.with_suffix('.bin')
        if not weights.is_file():
            raise InputError(f'{path} lacks its weights: {weights} belongs beside it.')
        core = openvino.Core()
        try:
            model = core.read_model(path, weights)
            known = model.has_rt_info([METADATA_KEY])
            self.info = read_info(model.get_rt_info([METADATA_KEY]).astype(str) if known else None, path)
            # float32 also on processors with bfloat16, which OpenVINO would otherwise use of its own accord
            options = {'INFERENCE_PRECISION_HINT': 'f32', 'PERFORMANCE_HINT': 'LATENCY'}
            options |= {} if threads is None else {'INFERENCE_NUM_THREADS': str(threads)}
            self._compiled = core.compile_model(model, (device or 'cpu').upper(), options)
        except RuntimeError as error:
            raise InputError(
                f'{path} cannot be loaded: it is damaged, or no OpenVINO model ({first_line(error)}).'
            ) from error

    def __call__(self, images: np.ndarray, sizes_hw: np.ndarray) -> Found:
        """See `ddetr.deployment.loading.Runtime`."""
        results = self._compiled({'images': images, 'sizes_hw': sizes_hw})
        return Found(*(results[name] for name in Found._fields))
