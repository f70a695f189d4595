"""Metadata of exported files."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from ddetr.utils.errors import InputError

FORMAT_VERSION = 1
METADATA_KEY = 'ddetr'  # key of the JSON in the file's metadata
INPUT_NAMES = ('images', 'sizes_hw')
OUTPUT_NAMES = ('boxes', 'scores', 'labels')


@dataclass(frozen=True)
class ExportInfo:
    """Metadata of every exported file, stored as JSON under `METADATA_KEY`.

    The inputs of the graph are `images` (B, 3, H, W), padded at the right and bottom, and `sizes_hw` (B, 2) int64,
    their sizes without padding. The outputs are `boxes` (B, N, 4) float32, x1 y1 x2 y2 in pixels of the input images,
    clipped to them; `scores` (B, N) float32, descending; and `labels` (B, N) int64. Unused entries have score 0.

    Attributes:
        detector: Registered type of the detector.
        target: Export target.
        classes: Class names by label.
        preprocessing: 'outside': `images` is float32, normalised. 'inside': `images` is uint8 in the pipeline's
            channel order, and the graph swaps channels and normalises.
        mean, std: Mean and standard deviation per channel, in the model's channel order; empty without normalisation.
        bgr_to_rgb: Whether to reverse the channels before normalisation.
        pad_value: Value of the padding after normalisation.
        pad_size_divisor: H and W are padded to multiples of this.
        test_pipeline: Configs of the transforms that resize images.
        batch, height, width: Fixed sizes; None if dynamic.
        multiple_of: H and W must be divisible by this.
        opset: ONNX opset, otherwise None.
        precision: 'fp32', 'fp16' or 'int8'.
        op: Representation of deformable attention; see `ddetr.deployment.OPS`.
        proof: Figures of the comparison with PyTorch, by name; empty without one.
        ddetr_version, format_version: Versions that the file was written with.
    """

    detector: str
    target: str
    classes: list[str]
    preprocessing: str
    mean: list[float]
    std: list[float]
    bgr_to_rgb: bool
    pad_value: float
    pad_size_divisor: int
    test_pipeline: list[dict[str, Any]]
    batch: int | None
    height: int | None
    width: int | None
    multiple_of: int
    opset: int | None
    precision: str
    op: str
    proof: dict[str, Any]
    ddetr_version: str
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Serialise to one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'ExportInfo':
        """Parse the JSON in `text`; ValueError if it is invalid."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'the metadata {METADATA_KEY!r} is not JSON: {error}') from error
        if not isinstance(content, dict):
            raise ValueError(f'the metadata {METADATA_KEY!r} is not a JSON object')
        if content.get('format_version') != FORMAT_VERSION:
            raise ValueError(
                f'the metadata has format_version={content.get("format_version")}, but this version of ddetr reads '
                f'{FORMAT_VERSION}: export again, or install the version that wrote it'
            )
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - content.keys()):
            raise ValueError(f'the metadata lacks {", ".join(missing)}')
        hints = get_type_hints(cls)
        for name in names:
            kinds = _kinds(hints[name])
            if not isinstance(content[name], kinds):
                raise ValueError(
                    f'the metadata has {name}={content[name]!r}, which is not of type {kinds[0].__name__}'
                )
        return cls(**{name: content[name] for name in names})


def _kinds(hint: Any) -> tuple[type, ...]:
    """Return the classes that a type annotation allows."""
    if hint is float:
        return float, int
    origin = getattr(hint, '__origin__', None)
    if origin is not None:
        return (origin,)
    return get_args(hint) or (hint,)


def parse_info(text: str | None, path: Any) -> ExportInfo:
    """Parse the metadata of the file `path`; InputError if it is missing or invalid."""
    if text is None:
        raise InputError(f'{path} has no metadata {METADATA_KEY!r}: it was not written by `ddetr export`.')
    try:
        return ExportInfo.from_json(text)
    except ValueError as error:
        raise InputError(f'{path}: {error}.') from error
