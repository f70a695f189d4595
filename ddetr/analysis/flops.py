"""Number of parameters and multiply-adds of a detector, without computing its layers.

The convention follows Carion et al. (2020) and Zhu et al. (2021), who extended detectron2's counter: one FLOP is one
multiply-add. Convolutions and matrix products count, including the two in attention; biases, norms, activations,
interpolation, NMS and losses do not. The layer itself reports the sampling of deformable attention
(`uncounted_macs`). RoIAlign is not counted: its number of samples depends on the boxes, and at 2 x 2 samples per bin
it would add 0.2 G to 180 G.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from mmcv.image.geometric import rescale_size
from mmengine.config import Config
from mmengine.model import BaseModel, ImgDataPreprocessor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ddetr.datasets.coco_format import read_coco
from ddetr.utils import ConfigError, InputError

from .building import build_detector

Size = tuple[int, int]
"""(h, w) in pixels."""

LARGE = 1 << 14  # elements; larger tensors are not computed


class Macs(NamedTuple):
    """Multiply-adds per image; `total` is the sum of `by_part`.

    `by_part` has one entry per child module of the detector for what runs in its forward, `sampling` for what layers
    report themselves, and `other` for the rest (branches that the detector calls one by one).
    """

    total: float
    by_part: dict[str, float]


def trainable_parameters(model: nn.Module) -> int:
    """Count parameters like the papers: without a frozen stem and frozen batch norms."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def build_for_counting(cfg: Config) -> BaseModel:
    """Build a config's detector with random weights, in eval mode, that does as much work as a trained one."""
    model: Any = build_detector(cfg).eval()
    if hasattr(model, 'prepare_for_counting'):
        model.prepare_for_counting()
    return model


def sizes_when_tested(cfg: Config, ann_file: str, num_images: int) -> Counter[Size]:
    """Count the sizes of the first images in a COCO annotation file after the resize of the test pipeline.

    No image is read.

    Raises:
        InputError: The annotation file cannot be read or lists no images.
        ConfigError: The test pipeline has no `Resize` with a `scale`.
    """
    resize: dict = next((t for t in cfg.test_dataloader.dataset.pipeline if t['type'] == 'Resize'), {})
    if 'scale' not in resize:
        raise ConfigError('test_dataloader.dataset.pipeline has no Resize with a scale: give a size instead')
    images = read_coco(ann_file, need_annotations=False)['images'][:num_images]
    if not images:
        raise InputError(f'annotation file {ann_file} lists no images')
    scale = tuple(resize['scale'])
    sizes: Counter[Size] = Counter()
    for image in images:
        size_wh = (image['width'], image['height'])
        width, height = rescale_size(size_wh, scale) if resize.get('keep_ratio') else scale
        sizes[height, width] += 1
    return sizes


def mean_macs(model: BaseModel, sizes: Mapping[Size, int]) -> Macs:
    """Average `count_macs` over images, given the number of images of each size (h, w)."""
    by_part: Counter[str] = Counter()
    for size, times in sizes.items():
        by_part.update({part: macs * times for part, macs in count_macs(model, size).by_part.items()})
    parts = {part: macs / sum(sizes.values()) for part, macs in by_part.items()}
    return Macs(sum(parts.values()), parts)


@torch.no_grad()
def count_macs(model: BaseModel, size: Size) -> Macs:
    """Count the multiply-adds of a detector's `forward(mode='tensor')` for one image of (h, w) pixels after resizing.

    The image is padded to the data preprocessor's `pad_size_divisor`. The model must be in eval mode.
    """
    divisor = cast(ImgDataPreprocessor, model.data_preprocessor).pad_size_divisor
    height, width = (-(-side // divisor) * divisor for side in size)
    image = torch.zeros(()).expand(1, 3, height, width)  # takes no memory
    pad_mask = torch.ones(1, height, width, dtype=torch.bool)
    pad_mask[:, : size[0], : size[1]] = False
    counter = MacCounter()
    # MATH: attention as two matrix products, for which PyTorch has a formula
    with _watch(model, counter), sdpa_kernel(SDPBackend.MATH), counter:
        model(image, mode='tensor', pad_mask=pad_mask)
    return Macs(sum(counter.by_part.values()), dict(counter.by_part))


class MacCounter(TorchDispatchMode):
    """Dispatch mode that counts multiply-adds and skips the computation of large tensors.

    A skipped result is a single number expanded to the right shape, which takes no memory. Small tensors are computed,
    so that code that depends on their values (level shapes, indices) still works. Views of skipped results are left
    as they are, and in-place operations never write to them.

    Attributes:
        part: Entry of `by_part` that the next operation is added to.
        by_part: Multiply-adds so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part = 'other'
        self.by_part: Counter[str] = Counter()
        self._answers: dict[tuple, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = self._answer(func, args, kwargs)
        if formula := flop_registry.get(func.overloadpacket):  # PyTorch counts a multiply-add as two
            self.by_part[self.part] += formula(*args, **kwargs, out_val=result) // 2
        return result

    def _answer(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        large = any(t.is_floating_point() and t.numel() > LARGE for t in tensors)
        if func.is_view or not large:
            return func(*args, **kwargs)
        if func._schema.is_mutable:  # in place: relu_, masked_fill_, ...
            return args[0]
        if (
            torch.Tag.pointwise in func.tags
        ):  # one element suffices to find the dtype; faster than the path below
            one = func(*tree_map_only(Tensor, _first_number, args), **kwargs)
            return one.expand(torch.broadcast_shapes(*(t.shape for t in tensors)))
        # cached, since layers repeat the same operations
        key = (func, *kwargs, *((t.shape, t.dtype) if isinstance(t, Tensor) else t for t in leaves))
        if key not in self._answers:
            try:
                meta_args, meta_kwargs = tree_map_only(
                    Tensor, lambda t: torch.empty_like(t, device='meta'), (args, kwargs)
                )
                self._answers[key] = func(*meta_args, **meta_kwargs)
            except NotImplementedError:  # data-dependent shapes: boolean masks, nonzero, NMS
                return func(*args, **kwargs)
        return tree_map_only(Tensor, _zeros_like, self._answers[key])


def _first_number(tensor: Tensor) -> Tensor:
    """(...) -> (1, ..., 1), with the broadcasting and type promotion of the full tensor."""
    return tensor.as_strided((1,) * tensor.dim(), (1,) * tensor.dim())


def _zeros_like(tensor: Tensor) -> Tensor:
    """Zeros that take no memory; small tensors are allocated, since they may be written to."""
    stored = torch.Size() if tensor.numel() > LARGE else tensor.shape
    return torch.zeros(stored, dtype=tensor.dtype).expand(tensor.shape)


@contextmanager
def _watch(model: nn.Module, counter: MacCounter) -> Iterator[None]:
    """Track in `counter` which child of `model` runs, and add what layers report themselves."""

    def now_in(name: str) -> Callable:
        return lambda *_: setattr(counter, 'part', name)

    def add_sampling(module: Any, args: Any, output: Tensor) -> None:
        counter.by_part['sampling'] += module.uncounted_macs(output)

    handles = []
    count: Any = getattr(model, 'counted_parts', None)
    for name, child in model.named_children() if count is None else count().items():
        handles.append(child.register_forward_pre_hook(now_in(name)))
        handles.append(child.register_forward_hook(now_in('other')))
    for module in model.modules():
        if hasattr(module, 'uncounted_macs'):
            handles.append(module.register_forward_hook(add_sampling))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
