"""What an exported file says about itself."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from ddetr.utils.errors import InputError

FORMAT_VERSION = 1
METADATA_KEY = 'ddetr'  # of the JSON in the file's metadata
INPUT_NAMES = ('images', 'sizes_hw')
OUTPUT_NAMES = ('boxes', 'scores', 'labels')


@dataclass(frozen=True)
class ExportInfo:
    """The record in the metadata of every exported file, as JSON under `METADATA_KEY`.

    The graph takes `images` (B, 3, H, W), padded at the right and the bottom, and `sizes_hw` (B, 2) int64, their sizes
    without padding. It gives `boxes` (B, N, 4) float32, x1 y1 x2 y2 in pixels of the input images, clipped to them;
    `scores` (B, N) float32, descending; `labels` (B, N) int64. Places without a detection score 0.

    Attributes:
        detector: Registered type.
        target: What it was exported to.
        classes: Names by label.
        preprocessing: 'outside': `images` is float32, normalised. 'inside': `images` is uint8 with the channels as the
            pipeline loads them; the graph swaps and normalises.
        mean, std: Per channel, in the order that the model sees; empty where nothing is normalised.
        bgr_to_rgb: Whether channels are reversed before normalising.
        pad_value: Written into the padding after normalising.
        pad_size_divisor: H and W are padded to multiples of it.
        test_pipeline: Configs of the transforms that bring an image to size.
        batch, height, width: Fixed sizes; None for dynamic ones.
        multiple_of: What H and W must be divisible by.
        opset: Of ONNX, else None.
        precision: 'fp32', 'fp16' or 'int8'.
        op: How deformable attention is written: see `ddetr.deployment.OPS`.
        proof: Figures of the comparison with PyTorch, by name; empty if there was none.
        ddetr_version, format_version: Of what wrote the file.
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
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'ExportInfo':
        """The record in `text`. ValueError that names what is wrong with it."""
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'the metadata {METADATA_KEY!r} is not JSON: {error}') from error
        if not isinstance(content, dict):
            raise ValueError(f'the metadata {METADATA_KEY!r} is no JSON object')
        if content.get('format_version') != FORMAT_VERSION:
            raise ValueError(
                f'the metadata has format_version={content.get("format_version")}, this ddetr reads '
                f'{FORMAT_VERSION}: export again, or install the ddetr that wrote it'
            )
        names = {field.name for field in fields(cls)}
        if missing := sorted(names - content.keys()):
            raise ValueError(f'the metadata lacks {", ".join(missing)}')
        hints = get_type_hints(cls)
        for name in names:
            kinds = _kinds(hints[name])
            if not isinstance(content[name], kinds):
                raise ValueError(
                    f'the metadata has {name}={content[name]!r}, which is no {kinds[0].__name__}'
                )
        return cls(**{name: content[name] for name in names})


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes that a value of this type annotation may have."""
    if hint is float:
        return float, int
    origin = getattr(hint, '__origin__', None)
    if origin is not None:
        return (origin,)
    return get_args(hint) or (hint,)


def parse_info(text: str | None, path: Any) -> ExportInfo:
    """The record in the metadata of the file `path`. InputError if there is none, or it cannot be used."""
    if text is None:
        raise InputError(f'{path} has no metadata {METADATA_KEY!r}: it was not written by `ddetr export`.')
    try:
        return ExportInfo.from_json(text)
    except ValueError as error:
        raise InputError(f'{path}: {error}.') from error
