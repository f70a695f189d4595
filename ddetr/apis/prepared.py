"""Optimise a detector for inference, and verify its detections against the original."""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError
from ddetr.utils.names import PRECISIONS

if TYPE_CHECKING:
    from mmengine.structures import InstanceData

EXAMPLE_SIZES_HW = ((192, 256), (256, 320))
ROUNDINGS = 10  # tolerated difference, as a multiple of the effect of rounding the original weights
FEW_OUTPUTS = 8  # maximum number of outputs of layers that predict boxes and points
Batch = dict[str, list[Any]]


class Bound(NamedTuple):
    """Allowed differences between the detections of the prepared and the original model."""

    score: float
    box: float  # box coordinates, as a fraction of the image sides
    min_score: float  # minimum score of the compared detections


class Difference(NamedTuple):
    """Largest differences between detections."""

    detections: int  # number of compared detections
    score: float
    box: float  # box coordinates, as a fraction of the image sides

    def within(self, bound: Bound) -> bool:
        """Whether both differences are within the bound; False for NaN."""
        return self.score <= bound.score and self.box <= bound.box


BOUNDS = dict(zip(PRECISIONS, (Bound(1e-5, 1e-5, 0.0), Bound(0.05, 0.01, 0.3)), strict=True))


def prepare_for_inference(
    detector: nn.Module, dtype: str = 'fp32', *, compile: bool = False, example: Sequence[Batch] | None = None
) -> nn.Module:
    """Create a faster copy of a detector with the same detections, usable with every API that takes a detector.

    Batch norms are folded into the preceding convolutions, convolutions use channels_last, linear layers are packed
    for oneDNN on the CPU, and feed-forward networks are tiled. `bf16` also stores the weights of layers that process
    pixels in bfloat16; layers that process queries or predict boxes stay in float32. Layers are found by their type
    and by tracing the data flow. The detections of both models on the example are then compared.

    The copy cannot be trained, copied, moved or saved. The original detector is not changed.

    Args:
        detector: Trained detector, on its device.
        dtype: 'fp32' or 'bf16'.
        compile: Whether to use `torch.compile` instead of packed weights. The first image of each size then takes
            minutes.
        example: Two batches of images of different sizes, as returned by a data loader (`inputs`, `data_samples`).
            Default: random images, on which a trained detector finds few objects.

    Returns:
        The prepared model in evaluation mode. Its attribute `difference` is the `Difference` from the original.

    Raises:
        InputError: Unknown dtype, unsupported detector, or detections that differ by more than both `BOUNDS[dtype]`
            and the effect of rounding the weights.
    """
    if dtype not in BOUNDS:
        raise InputError(f'dtype={dtype!r} must be one of {", ".join(BOUNDS)}.')
    from ddetr.models.inference_form import fold_norms, pack_layers

    plain = copy.deepcopy(detector).eval().requires_grad_(False)
    form: Any = copy.deepcopy(plain)
    batches = _random_examples() if example is None else example
    expected = _detect(plain, batches)
    fold_norms(form)
    if dtype == 'bf16':
        _store_pixel_layers_in_bf16(form, batches)
    form.to(memory_format=torch.channels_last)
    if compile:
        form.compile(options={'freezing': True})
    else:
        pack_layers(form)
    try:
        found = _detect(form, batches)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f'{type(detector).__name__} does not run when prepared in {dtype}: {error} Use the original model.'
        ) from error
    min_score = BOUNDS[dtype].min_score
    form.difference = compare_detections(expected, found, min_score)
    _require_equal(
        form.difference,
        dtype,
        lambda: compare_detections(expected, _detect(_with_rounding(plain, dtype), batches), min_score),
    )
    prepared: nn.Module = form
    return prepared


def compare_detections(
    expected: Sequence[DetDataSample], found: Sequence[DetDataSample], min_score: float
) -> Difference:
    """Compare each detection of at least `min_score` with the nearest one of its class, in both directions.

    The order of equal scores is arbitrary, and so is the cut-off at the end of a full list. Detections within 1e-4 of
    an image's lowest score are therefore ignored if both lists have the same length.
    """
    count, score, box = 0, 0.0, 0.0
    for left, right in zip(expected, found, strict=True):
        height, width = left.ori_shape[:2]
        sides = torch.tensor([width, height, width, height], dtype=torch.float32)
        for one, other in ((left, right), (right, left)):
            pairs = _nearest(one.pred_instances.cpu(), other.pred_instances.cpu(), sides, min_score)
            count += len(pairs)
            if len(pairs):
                score, box = max(score, pairs[:, 0].max().item()), max(box, pairs[:, 1].max().item())
    return Difference(count, score, box)


def _nearest(one: 'InstanceData', other: 'InstanceData', sides: Tensor, min_score: float) -> Tensor:
    """Differences (n, 2) in score and box between each compared detection and the nearest one of its class."""
    floor = min((float(found.scores.min()) for found in (one, other) if len(found)), default=0.0)
    floor = max(min_score, floor + 1e-4 if len(one) == len(other) else floor)
    chosen = one[one.scores >= floor]
    if not len(chosen):
        return torch.zeros(0, 2)
    if not len(other):
        return torch.full((len(chosen), 2), torch.inf)
    boxes = ((chosen.bboxes[:, None] - other.bboxes) / sides).abs().amax(-1)  # (n, m)
    scores = (chosen.scores[:, None] - other.scores).abs()
    apart = (boxes + scores).masked_fill(chosen.labels[:, None] != other.labels, torch.inf)
    nearest = apart.argmin(1, keepdim=True)
    differences = torch.stack([scores.gather(1, nearest), boxes.gather(1, nearest)], -1)[:, 0]
    return differences.masked_fill(apart.gather(1, nearest).isinf(), torch.inf)


def _require_equal(difference: Difference, dtype: str, rounding: Callable[[], Difference]) -> None:
    """Raise an InputError beyond the bound, unless rounding the original weights has a similar effect.

    This happens with tied proposals, near-threshold NMS decisions, and networks that amplify rounding errors.
    """
    bound = BOUNDS[dtype]
    if difference.within(bound):
        if not difference.detections:
            print_log(
                f'the prepared {dtype} model could not be verified, because nothing was detected: pass an example with '
                'objects to prepare_for_inference.',
                level=logging.WARNING,
            )
        return
    here = rounding()
    known = f'{difference.score:.2g} in score and {difference.box:.2g} of the image in boxes'
    if difference.within(Bound(ROUNDINGS * here.score, ROUNDINGS * here.box, 0.0)):
        print_log(
            f'the prepared {dtype} model differs from the original by {known}; rounding the original weights has a '
            'similar effect.',
            level=logging.WARNING,
        )
        return
    raise InputError(
        f'the prepared {dtype} model differs from the original by {known}; {bound.score:g} and {bound.box:g} are '
        f'allowed. Use {"fp32" if dtype == "bf16" else "the original model"}.'
    )


def _with_rounding(plain: nn.Module, dtype: str) -> nn.Module:
    """Copy of the model with each weight perturbed by about the precision of the dtype."""
    precision = torch.finfo(torch.bfloat16 if dtype == 'bf16' else torch.float32).eps
    shaken = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(0)
    for parameter in shaken.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.mul_(1 + precision * noise)
    return shaken


@torch.no_grad()
def _detect(model: Any, batches: Sequence[Batch]) -> list[DetDataSample]:
    """Detections in all images; the batches and their samples are not modified."""
    return [sample for batch in batches for sample in model.test_step(copy.deepcopy(batch))]


def _random_examples() -> list[Batch]:
    """Two batches of two images each; the second includes a padded image."""
    generator = torch.Generator().manual_seed(0)
    return [
        _random_batch((EXAMPLE_SIZES_HW[0], EXAMPLE_SIZES_HW[0]), generator),
        _random_batch(EXAMPLE_SIZES_HW, generator),
    ]


def _random_batch(sizes_hw: Sequence[tuple[int, int]], generator: torch.Generator) -> Batch:
    inputs = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes_hw]
    meta = [{'img_shape': size, 'ori_shape': size, 'scale_factor': (1.0, 1.0)} for size in sizes_hw]
    return {'inputs': inputs, 'data_samples': [DetDataSample(metainfo=each) for each in meta]}


def _store_pixel_layers_in_bf16(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Convert layers whose cost grows with the image size to bfloat16, and make all layers cast their inputs."""
    from ddetr.models.inference_form import has_bf16_instructions

    if next(model.parameters()).device.type == 'cpu' and not has_bf16_instructions():
        print_log(
            'this CPU has no bfloat16 instructions: the bf16 model uses less memory, but is slower.',
            level=logging.WARNING,
        )
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    small, large = (_rows(model, layers, batch) for batch in (batches[0], batches[-1]))
    for name, layer in layers.items():
        outputs = getattr(layer, 'out_features', getattr(layer, 'out_channels', None))
        if large[name] > 1.2 * small[name] and (outputs is None or outputs > FEW_OUTPUTS):
            layer.to(torch.bfloat16)
        layer.register_forward_pre_hook(_cast_inputs, with_kwargs=True)


def _rows(model: nn.Module, layers: dict[str, nn.Module], batch: Batch) -> dict[str, int]:
    """Number of rows (tokens, queries, pixels, regions) that each layer computes for a batch."""
    rows: dict[str, int] = defaultdict(int)
    handles = []
    for name, layer in layers.items():

        def count(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            output = output[0] if isinstance(output, tuple) else output
            channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            rows[name] += output.numel() // channels

        handles.append(layer.register_forward_hook(count))
    _detect(model, [batch])
    for handle in handles:
        handle.remove()
    return rows


def _cast_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}
