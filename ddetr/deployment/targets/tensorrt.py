"""Export to TensorRT engines, with the deformable attention plugin that ships with TensorRT. Not tested on a GPU.

Only the ONNX file that an engine is built from is tested (`ddetr export --to onnx --op tensorrt`): its nodes are
`MultiscaleDeformableAttnPlugin_TRT` with the plugin's five inputs.
"""

from pathlib import Path

from torch import Tensor, nn

from ddetr.deployment.info import ExportInfo
from ddetr.deployment.options import ExportOptions
from ddetr.utils.errors import InputError
from ddetr.utils.files import write_atomically

from . import onnx

SUFFIX = '.engine'
HAS_RUNTIME = False
LARGEST = 8, 1344  # maximum batch size and image side in pixels of engines with dynamic sizes


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Build an engine with the Python package `tensorrt`; see `targets.onnx.write` for arguments.

    Raises:
        InputError: `tensorrt` is not installed, or it cannot build the engine.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise InputError(
            'tensorrt is not installed: run pip install tensorrt on a machine with a GPU. To write only an ONNX file '
            'for trtexec, use --to onnx --op tensorrt.'
        ) from error
    file = path.with_suffix('.onnx')
    onnx.write(module, example, options._replace(op='tensorrt'), file)
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    tensorrt.init_libnvinfer_plugins(logger, '')
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        raise InputError(f'TensorRT cannot read the ONNX file: {parser.get_error(0).desc()}')
    file.unlink()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    smallest, usual, largest = (_shapes(options, example, which) for which in range(3))
    for name in ('images', 'sizes_hw'):
        profile.set_shape(name, smallest[name], usual[name], largest[name])
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise InputError('TensorRT cannot build the engine: see its log above.')
    path.write_bytes(bytes(engine))


def _shapes(options: ExportOptions, example: tuple[Tensor, Tensor], which: int) -> dict[str, tuple[int, ...]]:
    """Return the smallest, typical or largest input shapes, for `which` 0, 1 or 2."""
    batch, _, height, width = example[0].shape
    sides = [
        fixed or (usual, usual, LARGEST[1])[which]
        for fixed, usual in ((options.height, height), (options.width, width))
    ]
    batch = options.batch or (1, batch, LARGEST[0])[which]
    return {'images': (batch, 3, *sides), 'sizes_hw': (batch, 2)}


def annotate(path: Path, info: ExportInfo) -> None:
    """Write `info` to `model.engine.json` beside the engine, which has no metadata."""
    write_atomically(path.with_name(f'{path.name}.json'), lambda file: file.write_text(info.to_json()))
