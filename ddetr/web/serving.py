"""Start-up of the web demo: detector, examples and socket."""

import itertools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from mmengine.config import Config

from ddetr.analysis.speed import device_name
from ddetr.apis import DetInferencer, list_images
from ddetr.engine.config import dataset_of
from ddetr.utils.errors import InputError
from ddetr.visualization.colors import class_color

from .app import Setup, build_app
from .detection import Demo, Limits

LOCAL = ('localhost', '127.0.0.1', '::1')
EXAMPLES = 8  # from the test set, if none are given


class ServeOptions(NamedTuple):
    """Options of the demo server."""

    host: str = '127.0.0.1'
    port: int = 7860  # 0 for any free port
    examples: Sequence[str] | None = (
        None  # images or folders; None for the first images of the config's test set
    )
    score_thr: float = 0.3
    max_upload_mb: float = 20.0
    max_megapixels: float = 40.0
    queue_length: int = 32

    def check(self) -> None:
        """Raise an InputError for invalid values."""
        if not 0 <= self.score_thr <= 1:
            raise InputError(f'--score-thr {self.score_thr}: must be between 0 and 1.')
        for key, value in (('max-upload-mb', self.max_upload_mb), ('max-megapixels', self.max_megapixels)):
            if not 0 < value < 10_000:
                raise InputError(f'--{key} {value:g}: must be above 0 and below 10000.')
        if self.queue_length < 1:
            raise InputError(f'--queue {self.queue_length}: must be at least 1.')
        if not 0 <= self.port < 65536:
            raise InputError(f'--port {self.port}: must be between 0 and 65535.')


def serve(config: str | None, checkpoint: str, options: ServeOptions, **detector: Any) -> None:
    """Build the detector and serve it until Ctrl-C.

    Args:
        config, checkpoint: See `DetInferencer`.
        options: Options of the server.
        **detector: Further arguments of `DetInferencer`.

    Raises:
        InputError: An argument is invalid, or the port is in use.
    """
    options.check()
    examples = None if options.examples is None else _images(options.examples)
    with _listen(options.host, options.port) as listener:
        inferencer = DetInferencer(config, checkpoint, **detector)
        model: Any = inferencer.model
        if examples is None:
            examples = _test_images(model.cfg)
        limits = Limits(round(options.max_upload_mb * 1e6), round(options.max_megapixels * 1e6))
        local = options.host in LOCAL
        setup = Setup(
            _facts(inferencer, checkpoint),
            examples,
            limits,
            options.queue_length,
            options.score_thr,
            # restrict host names if the server is local: prevents DNS rebinding by other sites
            ('localhost', '127.0.0.1', '[::1]', '::1') if local else ('*',),
        )
        app = build_app(Demo(inferencer), setup)
        host, port = listener.getsockname()[:2]
        print(f'http://{f"[{host}]" if ":" in host else host}:{port}  (press Ctrl-C to stop)', flush=True)
        if not local:
            print('Anyone who can reach this machine can use the demo: there is no password.', flush=True)
        quiet: dict[str, Any] = {'log_level': 'warning', 'access_log': False, 'server_header': False}
        uvicorn.Server(uvicorn.Config(app, lifespan='off', **quiet)).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f'--host {host} --port {port} is not available ({os.strerror(error.errno or 0)}): choose another.'
        ) from None


def _images(places: Sequence[str]) -> list[Path]:
    return list(itertools.chain.from_iterable(list_images(place) for place in places))


def _test_images(cfg: Config) -> list[Path]:
    """Return the first images of the test set, if it exists."""
    dataset: Any = dataset_of(cfg.get('test_dataloader', {}))
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    folder = Path(dataset.get('data_root') or '', prefix)
    try:
        return list_images(folder)[:EXAMPLES] if prefix else []
    except InputError:
        return []


def _facts(inferencer: DetInferencer, checkpoint: str) -> dict[str, Any]:
    model: Any = inferencer.model
    parameters, meta = list(model.parameters()), model.dataset_meta
    return {
        'detector': type(model).__name__,
        'checkpoint': Path(checkpoint).name,
        'parameters': sum(p.numel() for p in parameters),
        'device': device_name(parameters[0].device),
        'colors': [class_color(label, meta.get('palette')) for label in range(len(inferencer.classes))],
    }
