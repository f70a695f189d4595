"""From a detector to a file that has been proved."""

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

EXAMPLE_HW = (256, 320)  # of the images that a detector with dynamic sizes is traced with


class Exported(NamedTuple):
    """What an export has made."""

    path: Path
    info: ExportInfo
    proof: Proof | None  # None where the target has no runtime here


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
    """Write a detector in a target's format and prove it on images; nothing is at `path` unless that succeeds.

    Args:
        detector: From `init_detector`, on the CPU: its `cfg` and `dataset_meta` go into the metadata.
        target: One of `TARGETS`.
        path: File to write.
        options: See there.
        images: (3, h, w) uint8 each, as the test pipeline gives them; at least two for a proof with two batches.
        bounds: Of the proof.
        check: Looks at the file after the proof, raises InputError unless it will do, and returns figures for the
            metadata.
        calibration: Images like `images`, of which int8 learns the ranges of activations.

    Raises:
        InputError: An unknown target or one whose packages are missing, options that do not go together, a model that
            is no detector, sizes that it cannot take, or a difference above the bounds.
    """
    module, path = target_module(target), Path(path)
    if path.suffix != module.SUFFIX:
        raise InputError(f'{path}: {target} files end in {module.SUFFIX}, name one.')
    check_options(options)
    check_precision(target, options.precision)
    deployed = DeployedDetector(detector, options.preprocessing).eval()
    options = settle_batch(detector, options)
    info = describe(detector, target, options)
    example = example_inputs(deployed, options, info)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f'.{path.name}.', suffix='.unfinished', dir=path.parent
    ) as folder:
        written, proof = Path(folder, path.name), None
        # a single node that no runtime here has a kernel for is proved in the form of ONNX's own operators
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
        for file in sorted(Path(folder).iterdir(), key=lambda file: file == written):  # the named one last
            shutil.move(file, path.parent / file.name)
    return Exported(path, info, proof)


def check_options(options: ExportOptions) -> None:
    """Raise InputError for sizes, an opset or an op that no target takes."""
    for name in ('batch', 'height', 'width'):
        size = getattr(options, name)
        if size is not None and size < 1:
            raise InputError(f'--{name} {size}: at least 1, or leave it out for any.')
    if options.opset not in OPSETS:
        raise InputError(
            f'--opset {options.opset}: detectors are written for opset {OPSETS[0]} to {OPSETS[-1]}; take one of these.'
        )
    if options.op not in OPS:
        raise InputError(f'--op {options.op}: there are {", ".join(OPS)}.')
    if options.op in SINGLE_NODES and options.precision != 'fp32':
        raise InputError(
            f'--precision {options.precision}: no quantiser knows the node of --op {options.op}.'
        )


def settle_batch(detector: Any, options: ExportOptions) -> ExportOptions:
    """A batch of one image for a detector that answers image by image; its runtime takes larger ones apart."""
    any_batch = getattr(detector, 'detects_any_batch', False)
    return options if any_batch or options.batch is not None else options._replace(batch=1)


def describe(detector: Any, target: str, options: ExportOptions) -> ExportInfo:
    """The metadata, before there is a proof."""
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
    """The config's test pipeline as JSON can hold it: types by their registered names."""
    from ddetr.engine.config import dataset_of

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return value.__name__ if callable(value) else value

    return plain(list(dataset_of(cfg.get('test_dataloader', {})).get('pipeline', ())))


def example_inputs(deployed: nn.Module, options: ExportOptions, info: ExportInfo) -> tuple[Tensor, Tensor]:
    """Inputs to trace with, which the detector has been run on. InputError for a size that it cannot take."""
    divisor = info.pad_size_divisor
    height, width = (
        fixed or -(-side // divisor) * divisor
        for fixed, side in zip((options.height, options.width), EXAMPLE_HW, strict=True)
    )
    batch = options.batch or 2
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, height, width, generator=generator)
    if options.preprocessing == 'inside':
        images = (images * 255).to(torch.uint8)
    sizes_hw = torch.tensor([[height, width]] * batch)
    sizes_hw[0] = torch.tensor([max(height - 9, 1), max(width - 17, 1)])  # one with padding
    try:
        with torch.no_grad():
            deployed(images, sizes_hw)
    except (InputError, RuntimeError, ValueError, IndexError) as error:
        raise InputError(
            f'{info.detector} cannot detect in images of {height} x {width} pixels (h x w): {first_line(error)}'
        ) from error
    return images, sizes_hw


def batches_of(images: Sequence[np.ndarray], options: ExportOptions) -> list[Sequence[np.ndarray]]:
    """The images as batches of two sizes, where the file takes any: the first one alone, then the others in pairs."""
    if options.batch is not None:
        return [images[start : start + options.batch] for start in range(0, len(images), options.batch)]
    return [images[:1], *(images[start : start + 2] for start in range(1, len(images), 2))]
