"""Export of a detector to a file, verified against PyTorch."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import ddetr
from ddetr.utils.errors import InputError, first_line

from .info import ExportInfo
from .module import DeployedDetector
from .options import OPS, OPSETS, SINGLE_NODES, ExportOptions
from .precision import check_precision, convert
from .preparing import prepare_batch
from .proof import Bounds, Proof, prove
from .runtimes import load
from .targets import target_module

# Sizes for tracing with dynamic sizes. Compilers compare sizes with each other; a batch size that no tensor has
# otherwise is not taken for a constant (AOTInductor took 2 for one).
EXAMPLE_BATCH, EXAMPLE_HW = 5, (256, 320)


class Exported(NamedTuple):
    """Result of an export."""

    path: Path
    info: ExportInfo
    proof: Proof | None  # None if ddetr has no runtime for the target


def export_detector(
    detector: Any,
    target: str,
    path: str | Path,
    options: ExportOptions,
    images: Sequence[np.ndarray],
    bounds: Bounds,
    check: Callable[[Path], dict[str, Any]] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> Exported:
    """Export a detector and verify the result on images; `path` is only written if the verification succeeds.

    Args:
        detector: Detector from `init_detector`, on the CPU; its `cfg` and `dataset_meta` go into the metadata.
        target: One of `TARGETS`.
        path: File to write.
        options: Options of the export.
        images: Images (3, h, w) uint8, as returned by the test pipeline; at least two, to verify two batches.
        bounds: Maximum differences from PyTorch.
        check: Additional check of the verified file. It raises InputError if the file is rejected, and returns figures
            for the metadata.
        calibration: Images like `images` for int8 calibration.

    Raises:
        InputError: The target is unknown or its packages are missing, options are incompatible, the model is not a
            detector or does not support the sizes (or dynamic ones), or a difference exceeds the bounds.
    """
    module, path = target_module(target), Path(path)
    if path.suffix != module.SUFFIX:
        raise InputError(f'{path}: the suffix of {target} files must be {module.SUFFIX}.')
    check_options(options)
    check_precision(target, options.precision)
    deployed = DeployedDetector(detector, options.preprocessing).eval()
    options = settle_batch(detector, options)
    if needs_fixed_size(detector) and (options.height is None or options.width is None):
        raise InputError(
            f'{detector.backbone.model_name} attends in windows, and tracing it with dynamic image sizes takes too '
            'long: fix them with --height and --width.'
        )
    info = describe(detector, target, options)
    example = example_inputs(deployed, options, info)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{path.name}.', suffix='.unfinished', dir=path.parent
    ) as folder:
        written, proof = Path(folder, path.name), None
        # no Python runtime has a kernel for these custom nodes: verify the same model with standard ONNX operators
        provable = options._replace(op='gridsample') if options.op in SINGLE_NODES else options
        if getattr(module, 'HAS_RUNTIME', True):
            module.write(deployed, example, provable, written)
            convert(
                written, target, options.precision, [prepare_batch([image], info) for image in calibration]
            )
            module.annotate(written, info)
            proof = prove(detector, load(written), batches_of(images, options), bounds)
            more = check(written) if check else {}
            info = replace(info, proof={**proof._asdict(), **more})
        if provable is not options or proof is None:
            module.write(deployed, example, options, written)
        module.annotate(written, info)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == written):  # `path` itself last
            shutil.move(file, path.parent / file.name)
    return Exported(path, info, proof)


def check_options(options: ExportOptions) -> None:
    """Raise an InputError for a size, opset or op that no target supports."""
    for name in ('batch', 'height', 'width'):
        size = getattr(options, name)
        if size is not None and size < 1:
            raise InputError(f'--{name} {size}: must be at least 1; omit it for dynamic sizes.')
    if options.opset not in OPSETS:
        raise InputError(f'--opset {options.opset}: must be between {OPSETS[0]} and {OPSETS[-1]}.')
    if options.op not in OPS:
        raise InputError(f'--op {options.op}: choose one of {", ".join(OPS)}.')
    if options.op in SINGLE_NODES and options.precision != 'fp32':
        raise InputError(
            f'--precision {options.precision}: quantisers do not support the custom node of --op {options.op}.'
        )


def settle_batch(detector: Any, options: ExportOptions) -> ExportOptions:
    """Fix the batch size to 1 for detectors that process images one by one; runtimes split larger batches."""
    any_batch = getattr(detector, 'detects_any_batch', False)
    return options if any_batch or options.batch is not None else options._replace(batch=1)


def needs_fixed_size(detector: Any) -> bool:
    """Whether a detector's backbone can only be traced with a fixed height and width."""
    return getattr(getattr(detector, 'backbone', None), 'needs_fixed_size_to_trace', False)


def describe(detector: Any, target: str, options: ExportOptions) -> ExportInfo:
    """Return the metadata before verification."""
    preprocessor = detector.data_preprocessor
    normalises = getattr(preprocessor, '_enable_normalize', False)
    mean, std = (
        getattr(preprocessor, name).flatten().tolist() if normalises else [] for name in ('mean', 'std')
    )
    return ExportInfo(
        detector=type(detector).__name__,
        target=target,
        classes=list(detector.dataset_meta['classes']),
        preprocessing=options.preprocessing,
        mean=mean,
        std=std,
        bgr_to_rgb=bool(getattr(preprocessor, '_channel_conversion', False)),
        pad_value=float(getattr(preprocessor, 'pad_value', 0)),
        pad_size_divisor=int(getattr(preprocessor, 'pad_size_divisor', 1)),
        test_pipeline=plain_pipeline(detector.cfg),
        batch=options.batch,
        height=options.height,
        width=options.width,
        multiple_of=1,
        opset=options.opset if target == 'onnx' else None,
        precision=options.precision,
        op=options.op if target == 'onnx' else 'kernel',
        proof={},
        ddetr_version=ddetr.__version__,
    )


def plain_pipeline(cfg: Any) -> list[dict[str, Any]]:
    """Return the config's test pipeline in JSON-compatible form, with types as registered names."""
    from ddetr.engine.config import dataset_of

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.__name__ if callable(value) else value

    return plain(list(dataset_of(cfg.get('test_dataloader', {})).get('pipeline', ())))


def example_inputs(deployed: nn.Module, options: ExportOptions, info: ExportInfo) -> tuple[Tensor, Tensor]:
    """Return example inputs for tracing, after a test run; InputError if the detector does not support the size."""
    divisor = info.pad_size_divisor
    height, width = (
        fixed or -(-side // divisor) * divisor
        for fixed, side in zip((options.height, options.width), EXAMPLE_HW, strict=True)
    )
    batch = options.batch or EXAMPLE_BATCH
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator)
    if options.preprocessing == 'inside':
        images = (images * 255).to(torch.uint8)
    sizes_hw = torch.tensor([[height, width]] * batch)
    sizes_hw[0] = torch.tensor([max(height - 9, 1), max(width - 17, 1)])  # one image with padding
    try:
        with torch.no_grad():
            deployed(images, sizes_hw)
    except (InputError, RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f'{info.detector} cannot detect in images of {height} x {width} pixels (h x w): {first_line(error)}'
        ) from error
    return images, sizes_hw


def batches_of(images: Sequence[np.ndarray], options: ExportOptions) -> list[Sequence[np.ndarray]]:
    """Split images into batches: with a dynamic batch size, the first image alone and the others in pairs."""
    if options.batch is not None:
        return [images[start : start + options.batch] for start in range(0, len(images), options.batch)]
    return [images[:1], *(images[start : start + 2] for start in range(1, len(images), 2))]
