"""Sampling points of deformable attention, recorded during a forward pass and mapped to image pixels.

`record_sampling` intercepts every call of the op in the forward pass of any model; detectors need no code for it.
"""

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from ddetr_ops import ms_deform_attn, ms_deform_attn_fused
from ddetr_ops.reference import sampling_locations_of
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import box_convert

from ddetr.apis import prepare_image
from ddetr.apis.inference import Image
from ddetr.models.layers.positional_encoding import pad_mask_on
from ddetr.structures import DetDataSample, SetPredictions
from ddetr.utils.errors import InputError
from ddetr.visualization.sampling_points import SampledPoints


class SamplingCall(NamedTuple):
    """One call of the op.

    B: batch, Q: queries, S: tokens, M: heads, D: channels per head, L: levels, K: points summed over all levels.

    Coordinates run from 0 to 1 between the outer borders of the padded feature maps.
    """

    layer: str  # name of the calling module
    value: Tensor  # (B, S, M, D)
    spatial_shapes: Tensor  # (L, 2) int64, (h, w)
    reference: (
        Tensor | None
    )  # (B, Q, L, 2) x y or (B, Q, L, 4) cx cy w h; None if the caller gave only locations
    locations: Tensor  # (B, Q, M, K, 2), x y
    weights: Tensor  # (B, Q, M, K), after the softmax
    points_of_level: tuple[int, ...]  # L numbers
    output: Tensor  # (B, Q, M * D)

    @property
    def level_of_point(self) -> Tensor:
        """(K,) int64."""
        counts = torch.tensor(self.points_of_level)
        return torch.arange(len(counts)).repeat_interleave(counts)

    @property
    def queries_are_tokens(self) -> bool:
        """Whether this is encoder self-attention: one query per token, referring to the token's own pixel."""
        if self.locations.shape[1] != self.value.shape[1]:
            return False
        if self.reference is None:
            return True
        if self.reference.shape[-1] != 2:
            return False
        start = 0
        for level, (height, width) in enumerate(self.spatial_shapes.tolist()):
            pixels = self.reference[0, start : start + height * width, level].cpu() * torch.tensor(
                [width, height]
            )
            start += height * width
            cells = torch.arange(height * width)
            centres = torch.stack([cells % width, cells // width], -1) + 0.5
            if not torch.allclose(pixels, centres, atol=0.05):
                return False
        return True


@dataclass
class SamplingRecord:
    """Calls recorded by `record_sampling`, in the order of the forward pass."""

    calls: list[SamplingCall] = field(default_factory=list)
    predictions: SetPredictions | None = None  # None if no module of the detector returns them


class _Recorder(TorchFunctionMode):
    """Records calls of the op in this thread, each with the innermost running module."""

    def __init__(self, record: SamplingRecord, encoder: bool) -> None:
        super().__init__()
        self.record, self.running, self.thread = record, [''], threading.get_ident()
        self.encoder = encoder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in (ms_deform_attn, ms_deform_attn_fused):
            given = inspect.signature(func).bind(*args, **(kwargs or {})).arguments
            call = _call(self.running[-1], given, output)
            if self.encoder or not call.queries_are_tokens:
                self.record.calls.append(call)
        return output

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        """Register hooks that track when the module runs."""

        def enter(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == self.thread:
                self.running.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == self.thread:
                self.running.pop()
                if isinstance(output, SetPredictions):
                    self.record.predictions = output

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]


@contextmanager
def record_sampling(model: nn.Module, encoder: bool = True) -> Iterator[SamplingRecord]:
    """Context manager that records calls of the op in forward passes of `model` in this thread.

    It works for every module that calls `ddetr_ops.ms_deform_attn` or `ms_deform_attn_fused`, on any device. All hooks
    are removed on exit.

    Args:
        model: A detector or any other module.
        encoder: Also keep the encoder's calls, which take up most of the memory.
    """
    record = SamplingRecord()
    recorder = _Recorder(record, encoder)
    hooks = [hook for name, module in model.named_modules() for hook in recorder.watch(name, module)]
    try:
        with recorder:
            yield record
    finally:
        for hook in hooks:
            hook.remove()


def _call(layer: str, given: dict[str, Any], output: Tensor) -> SamplingCall:
    """Build the record from the named arguments of either form of the op."""
    value, shapes = given['value'].detach(), given['spatial_shapes'].cpu().long()
    counts, reference = given.get('num_points'), None
    if 'sampling_locations' in given:
        locations, weights = (
            given['sampling_locations'].detach().float(),
            given['attention_weights'].detach().float(),
        )
    else:
        reference = given['reference_points'].detach().float()
        offsets = given['sampling_offsets'].detach().float()
        locations = sampling_locations_of(reference, offsets, shapes.to(offsets.device), counts)
        weights = given['attention_logits'].detach().float().softmax(-1)
    if counts is None:
        counts = [locations.shape[-2]] * len(shapes)  # (..., L, P, 2)
    heads = locations.shape[:3]
    parts = locations.reshape(*heads, -1, 2), weights.reshape(*heads, -1)
    return SamplingCall(layer, value, shapes, reference, *parts, tuple(counts), output.detach())


@dataclass(frozen=True)
class ImageLook:
    """Detections of one image, and the points that the detector sampled for them."""

    sample: DetDataSample  # `pred_instances` as returned by `inference_detector`
    calls: list[SamplingCall]
    pad_mask: Tensor  # (1, H, W) bool, True = padding
    boxes_xyxy_px: (
        Tensor | None
    )  # (N, Q, 4) for N decoder layers, in pixels of the original image; None if unknown

    @classmethod
    def of(cls, sample: DetDataSample, record: SamplingRecord, batch: Mapping[str, Any]) -> 'ImageLook':
        """Create from the forward pass of one image.

        Args:
            sample: Detections of the image.
            record: Record of the forward pass.
            batch: Output of the data preprocessor for this image alone.
        """
        pad_mask = batch.get('pad_mask')
        if pad_mask is None:
            pad_mask = torch.zeros(1, *batch['inputs'].shape[-2:], dtype=torch.bool)
        boxes = None
        if record.predictions is not None:
            boxes = box_convert(
                record.predictions.boxes_cxcywh_norm[:, 0].float(), 'cxcywh', 'xyxy'
            )  # (N, Q, 4)
            boxes = sample.to_original(boxes * boxes.new_tensor(sample.img_shape[1::-1] * 2)).cpu()
        return cls(sample.cpu(), record.calls, pad_mask.cpu(), boxes)

    def for_detections(self) -> 'ImageLook':
        """Keep only what `detection` and `query` need, on the CPU and without feature maps, to save memory."""
        calls = [
            call._replace(
                value=call.value.new_empty(
                    1, call.value.shape[1], 0, 0, device='cpu'
                ),  # S identifies the layers
                reference=None if call.reference is None else call.reference.cpu(),
                locations=call.locations.cpu(),
                weights=call.weights.cpu(),
                output=call.output.new_empty(0, device='cpu'),
            )
            for call in self.calls
            if not call.queries_are_tokens
        ]
        return replace(self, calls=calls)

    def query_of(self, detection: int) -> int:
        """Return the decoder query of a detection, numbered from 0, best first; InputError if it does not exist."""
        found = self.sample.pred_instances
        if not 0 <= detection < len(found):
            raise InputError(
                f'there is no detection {detection}: this image has {len(found)}, numbered from 0.'
            )
        if 'query_index' not in found:
            raise InputError(
                "the detector does not report the query of a detection: its pred_instances need 'query_index'."
            )
        return int(found.query_index[detection])

    def detection(self, detection: int) -> list[SampledPoints]:
        """Return the sampling points of a detection's query in each decoder layer."""
        return self.query(self.query_of(detection))

    def query(self, query: int) -> list[SampledPoints]:
        """Return the sampling points of a decoder query in each decoder layer; InputError if there are none."""
        calls = [call for call in self.calls if not call.queries_are_tokens]
        if not calls:
            raise InputError('this detector has no decoder with deformable attention.')
        if not 0 <= query < calls[0].locations.shape[1]:
            raise InputError(
                f'there is no query {query}: there are {calls[0].locations.shape[1]}, numbered from 0.'
            )
        return [self._points(call, query) for call in calls]

    def token(self, x_px: float, y_px: float, level: int = 0) -> list[SampledPoints]:
        """Return the sampling points of the token at a pixel of the original image, in each encoder layer.

        Args:
            x_px, y_px: Pixel coordinates.
            level: Feature level of the token; 0 is the finest.
        """
        calls = [call for call in self.calls if call.queries_are_tokens]
        if not calls:
            raise InputError(
                'this detector has no encoder with deformable attention, so tokens have no sampling points.'
            )
        width, height = self._sides_px
        if not (0 <= x_px < width and 0 <= y_px < height):
            raise InputError(
                f'pixel ({x_px:g}, {y_px:g}) is outside the image of {width:g} x {height:g} pixels.'
            )
        shapes = calls[0].spatial_shapes.tolist()
        if not 0 <= level < len(shapes):
            raise InputError(f'there is no level {level}: there are {len(shapes)}, numbered from 0.')
        cells = self._valid_ratios(calls[0])[level] * np.array(
            shapes[level][::-1]
        )  # w and h, without padding
        column, row = (np.array([x_px / width, y_px / height]) * cells).astype(int)
        start = sum(h * w for h, w in shapes[:level])
        return [self._points(call, start + row * shapes[level][1] + column) for call in calls]

    @property
    def _sides_px(self) -> np.ndarray:
        """(w, h) of the original image, from the scale that maps detections back."""
        return np.array(self.sample.img_shape[1::-1]) / self.sample.get('scale_factor', (1.0, 1.0))

    def _valid_ratios(self, call: SamplingCall) -> np.ndarray:
        """(L, 2), (w, h): fraction of each level's sides that is not padding."""
        ratios = []
        for height, width in call.spatial_shapes.tolist():
            valid = ~pad_mask_on(self.pad_mask.new_empty(1, 1, height, width), self.pad_mask)[0]  # (h, w)
            ratios.append((int(valid[0].sum()) / width, int(valid[:, 0].sum()) / height))
        return np.array(ratios)

    def _points(self, call: SamplingCall, query: int) -> SampledPoints:
        """Map one query's points from padded feature maps to image pixels, by the valid ratio of each level."""
        ratios, levels = self._valid_ratios(call), call.level_of_point.numpy()
        xy = call.locations[0, query].double().cpu().numpy() / ratios[levels] * self._sides_px  # (M, K, 2)
        reference = None
        if call.reference is not None:
            reference = call.reference[0, query, 0].double().cpu().numpy()
            reference = (reference.reshape(-1, 2) / ratios[0] * self._sides_px).ravel()
            if len(reference) == 4:
                reference = np.concatenate(
                    [reference[:2] - reference[2:] / 2, reference[:2] + reference[2:] / 2]
                )
        return SampledPoints(call.layer, xy, call.weights[0, query].cpu().numpy(), levels, reference)


@torch.no_grad()
def look_at(model: Any, image: Image) -> ImageLook:
    """Detect objects in one image with a model from `init_detector` and record its sampling points.

    Raises:
        InputError: The image cannot be read, or nothing in the model samples by deformable attention.
    """
    batch = model.data_preprocessor(prepare_image(model, image), False)
    with record_sampling(model) as record:
        sample = model(**batch, mode='predict')[0]
    if not record.calls:
        raise InputError(
            f'{type(model).__name__} does not use deformable attention of ddetr_ops, '
            'so there are no sampling points to show.'
        )
    return ImageLook.of(sample, record, batch)
