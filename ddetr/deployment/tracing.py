"""What all targets tell PyTorch's exporter."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from ddetr.deployment.options import ExportOptions


def dynamic_shapes(options: ExportOptions) -> dict[str, dict[int, Any]]:
    """The dynamic axes of `images` and `sizes_hw`, as `torch.export` takes them."""
    from torch.export import Dim

    axes = {0: options.batch, 2: options.height, 3: options.width}
    images = {axis: Dim.DYNAMIC for axis, size in axes.items() if size is None}
    return {'images': images, 'sizes_hw': {0: Dim.DYNAMIC} if options.batch is None else {}}


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Keep the exporters' notes about themselves out of the output."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
