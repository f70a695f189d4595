"""Check that images are normalised as the pretrained weights expect."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData

from ddetr.analysis.examples import Example
from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError
from ddetr.weights import read_checkpoint

from .contents import Array
from .findings import Finding, Measured
from .subject import Subject, model_batch, start_model

MEAN_TOLERANCE, STD_TOLERANCE = 12.0, 1.3  # on the scale 0 to 255; a factor
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PLAUSIBLE_STD = (0.1, 5.0)  # of network inputs
PLAUSIBLE_MEAN = 4.0
LOSS_GAIN = 0.85  # loss ratio at which trained weights prefer another normalisation
CLEAR_COLOURS = 0.5  # correlation with the file at which the channel order is certain
PROBES = 8  # images used to compare losses
LONG_SIDE_PX = 320


class Colours(NamedTuple):
    """Normalisation of network inputs: (channel - mean) / std of pixels from 0 to 255, in this channel order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    order: str  # 'RGB' or 'BGR'

    def __str__(self) -> str:
        mean, std = (', '.join(f'{v:.4g}' for v in values) for values in (self.mean, self.std))
        return f'{self.order} with mean ({mean}) and std ({std})'

    def differs(self, other: 'Colours') -> str:
        """Describe the difference; '' if equal within the tolerance."""
        ratio = np.divide(self.std, other.std)
        if (ratio > STD_TOLERANCE).any() or (ratio < 1 / STD_TOLERANCE).any():
            return 'the scale (std)'
        # compare per channel: both means in the order of the first
        theirs = other.mean if self.order == other.order else other.mean[::-1]
        if self.order != other.order:
            return 'the order of the channels (RGB and BGR)'
        return 'the mean' if np.abs(np.subtract(self.mean, theirs)).max() > MEAN_TOLERANCE else ''


IMAGENET = Colours(IMAGENET_MEAN, IMAGENET_STD, 'RGB')


def check_normalisation(subject: Subject) -> Measured:
    """Compare the model's input with what its weights were trained on, or with the range any network needs."""
    seen, known = seen_by(subject)
    facts = [
        f'the model sees {seen}'
        + ('' if known else ' (order by the pipeline, the images show no clear colours)')
    ]
    pixels = _statistics(subject)
    facts.append(f'the pixels that it sees have mean {pixels[0]:.2f} and std {pixels[1]:.2f}')
    expected = expected_by(subject)
    if expected is not None:
        colours, source = expected
        facts.append(f'{source} expects {colours}')
        if difference := seen.differs(colours):
            return Measured(tuple(facts), (_wrong(seen, colours, f'{source} expects {colours}', difference),))
    if not PLAUSIBLE_STD[0] <= pixels[1] <= PLAUSIBLE_STD[1] or abs(pixels[0]) > PLAUSIBLE_MEAN:
        evidence = f'{facts[1]}; networks are given about 0 and 1'
        return Measured(tuple(facts), (_wrong(seen, IMAGENET, evidence, 'the scale'),))
    if (seen.order == 'BGR' and _is_imagenet(seen.mean)) or (
        seen.order == 'RGB' and _is_imagenet(seen.mean[::-1])
    ):
        evidence = f"the mean is ImageNet's for {seen.order[::-1]}, the channels are {seen.order}"
        return Measured(tuple(facts), (_wrong(seen, IMAGENET, evidence, 'the order of the channels'),))
    preferred, fact = preferred_by_loss(subject, seen)
    facts += fact
    if preferred is not None and (difference := seen.differs(preferred)):
        return Measured(tuple(facts), (_wrong(seen, preferred, fact[0], difference),))
    return Measured(tuple(facts))


def _wrong(seen: Colours, right: Colours, evidence: str, difference: str) -> Finding:
    mean, std = (f'[{", ".join(f"{v:.6g}" for v in values)}]' for values in (right.mean, right.std))
    swap = 'bgr_to_rgb=True' if right.order == 'RGB' else 'bgr_to_rgb=False'
    return Finding(
        'normalisation',
        f'the images are normalised wrongly: {difference} differs from what the weights expect',
        f'the model sees {seen}; {evidence}',
        f'set model.data_preprocessor to mean={mean}, std={std}, {swap} (for a pipeline that reads BGR, as '
        'LoadImageFromFile does).',
    )


def _is_imagenet(mean: Sequence[float]) -> bool:
    return bool(np.abs(np.subtract(mean, IMAGENET_MEAN)).max() < 1.0)


def seen_by(subject: Subject) -> tuple[Colours, bool]:
    """Measure the normalisation by pipeline and data preprocessor; also return whether the order is certain."""
    order, mean, std = _of_preprocessor(subject.model)
    correlation = _likeness_to_file(subject.examples)
    pipeline = 'RGB' if correlation < -CLEAR_COLOURS else 'BGR'
    seen = ''.join(pipeline[channel] for channel in order)
    return Colours(mean, std, seen), abs(correlation) > CLEAR_COLOURS


def _of_preprocessor(model: Any) -> tuple[list[int], tuple[float, ...], tuple[float, ...]]:
    """Infer channel order, mean and std of any data preprocessor from its output on uniform images."""

    def output(colour: Sequence[int]) -> Array:
        image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 64, 64).contiguous()
        sample = DetDataSample(
            metainfo={'img_shape': (64, 64), 'ori_shape': (64, 64), 'scale_factor': (1.0, 1.0)}
        )
        sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        batch = model.data_preprocessor({'inputs': [image], 'data_samples': [sample]}, False)
        return batch['inputs'][0, :, 32, 32].double().numpy()

    black = output((0, 0, 0))  # (3,) = -mean / std
    slopes = (
        np.stack([output([100 * (c == i) for c in range(3)]) - black for i in range(3)], 1) / 100
    )  # (3 out, 3 in)
    order = slopes.argmax(1).tolist()
    std = 1 / slopes.max(1).clip(1e-9)
    return order, tuple((-black * std).tolist()), tuple(std.tolist())


def _likeness_to_file(examples: Sequence[Example]) -> float:
    """Correlate (first - last channel) between pipeline output and file (BGR); 0 if it cannot be determined."""
    pairs = []
    for example in examples[:: max(1, len(examples) // 24)]:
        path = example.sample.get('img_path')
        image = cv2.imread(str(path)) if path and '://' not in str(path) else None
        if image is not None:
            means = image.reshape(-1, 3).mean(0), example.pixels.reshape(-1, 3).mean(0)
            pairs.append([mean[0] - mean[2] for mean in means])
    if not pairs:
        return 0.0
    file, pipeline = np.array(pairs, dtype=float).T
    size = np.linalg.norm(file) * np.linalg.norm(pipeline)
    return float(file @ pipeline / size) if size > 1 else 0.0


def _statistics(subject: Subject) -> tuple[float, float]:
    batches = [
        model_batch(subject.model, [example], LONG_SIDE_PX)['inputs'] for example in subject.examples[:PROBES]
    ]
    values = torch.cat([batch.flatten() for batch in batches])
    return float(values.mean()), float(values.std())


def expected_by(subject: Subject) -> tuple[Colours, str] | None:
    """Return the normalisation that the weights were trained with, and its source; None if random or unknown."""
    source = subject.checkpoint or subject.cfg.get('load_from')
    if source:
        colours = of_checkpoint(source)
        return None if colours is None else (colours, str(source))
    backbone: Any = getattr(subject.model, 'backbone', None)
    if backbone is None:
        return None
    configs: list[Any] = []
    for config in (getattr(subject.model, 'init_cfg', None), getattr(backbone, 'init_cfg', None)):
        configs += config if isinstance(config, list) else [config or {}]
    sources = [config['checkpoint'] for config in configs if config.get('type') == 'Pretrained']
    if not sources:
        return None
    name = str(sources[0])
    given = getattr(backbone, 'pretrained_colours', None)
    if given is not None:
        return Colours(given[0], given[1], 'RGB'), name
    if name.startswith('torchvision://'):
        return IMAGENET, name
    if 'caffe' in name:
        return Colours(IMAGENET_MEAN[::-1], (1.0, 1.0, 1.0), 'BGR'), name
    return None if '://' in name else _of_file(name)


def _of_file(name: str) -> tuple[Colours, str] | None:
    colours = of_checkpoint(name)
    return None if colours is None else (colours, name)


def of_checkpoint(name: str) -> Colours | None:
    """Return the normalisation in a checkpoint's own config; ImageNet's for files without a config."""
    try:
        content = read_checkpoint(name)
    except InputError:
        return None  # reported when the model is built
    meta = content.get('meta')
    text = meta.get('cfg') if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return IMAGENET  # torchvision's and the original detectors' files
    for value in _calls(text, 'data_preprocessor'):
        if value.get('mean') is not None:
            order = 'RGB' if value.get('bgr_to_rgb') else 'BGR'
            mean, std = (tuple(map(float, value[key] * (3 // len(value[key])))) for key in ('mean', 'std'))
            return Colours(mean, std, order)
    return None


def _calls(text: str, key: str) -> Iterator[dict[str, Any]]:
    """Yield each `key=dict(...)` in a config's text, literals only: nothing is executed."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == key and isinstance(node.value, ast.Call):
            values = {}
            for item in node.value.keywords:
                try:
                    values[item.arg or ''] = ast.literal_eval(item.value)
                except ValueError:
                    continue
            yield values


def preferred_by_loss(subject: Subject, seen: Colours) -> tuple[Colours | None, list[str]]:
    """Return the normalisation with the lowest loss of a trained detector, if clearly not the current one."""
    source = subject.checkpoint or subject.cfg.get('load_from')
    if not source:
        return None, []
    model, report = start_model(subject.cfg, source)
    if report is None or report.reinitialised or report.missing:
        return None, []
    model.eval()
    chosen = [example for example in subject.examples if len(example.labels)][:PROBES]
    swapped = seen._replace(order=seen.order[::-1])
    choices = {
        seen,
        swapped,
        IMAGENET,
        seen._replace(mean=seen.mean[::-1], std=seen.std[::-1], order=seen.order[::-1]),
    }
    losses = {colours: _loss(model, chosen, seen, colours) for colours in choices}
    best = min(losses, key=lambda colours: losses[colours])
    fact = f'its loss is {losses[seen]:.3g} as the config gives images, and {losses[best]:.3g} for {best}'
    return (best if losses[best] < LOSS_GAIN * losses[seen] else None), [fact]


@torch.no_grad()
def _loss(model: Any, examples: Sequence[Example], seen: Colours, wanted: Colours) -> float:
    """Return the mean loss of images renormalised from `seen` to `wanted`."""
    total = 0.0
    for example in examples:
        batch = model_batch(model, [example], LONG_SIDE_PX, training=False)
        pixels = batch['inputs'] * _column(seen.std) + _column(seen.mean)
        pixels = pixels if seen.order == wanted.order else pixels.flip(1)
        batch['inputs'] = ((pixels - _column(wanted.mean)) / _column(wanted.std)).float()
        torch.manual_seed(0)
        total += float(model.parse_losses(model(**batch, mode='loss'))[0])
    return total / max(len(examples), 1)


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None, None]
