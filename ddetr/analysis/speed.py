"""How fast a detector detects and trains, and how much memory it takes."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

COCO_TRAIN_IMAGES = 118_287  # of train2017


class Speed(NamedTuple):
    """Times of one step on one batch."""

    images: int  # in the batch
    median_s: float  # of the steps; then the quartiles
    low_s: float
    high_s: float
    peak_mib: float  # the process's largest resident memory on the CPU, PyTorch's largest allocation on a GPU

    @property
    def images_per_s(self) -> float:
        return self.images / self.median_s

    @property
    def spread(self) -> float:
        """The interquartile range as a fraction of the median."""
        return (self.high_s - self.low_s) / self.median_s

    def hours_per_epoch(self, images: int = COCO_TRAIN_IMAGES) -> float:
        """Of one device for an epoch of so many images."""
        return images / self.images_per_s / 3600


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads that PyTorch uses."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(': ')[-1] for line in lines if line.startswith('model name')), 'CPU')
    return f'{model}, {torch.get_num_threads()} threads'


def detection_step(model: Any, batch: dict[str, list], amp: bool) -> Callable[[], Any]:
    """A function that detects on a batch: normalising, the model, choosing and rescaling boxes."""
    model.eval()
    device = next(model.parameters()).device.type
    dtype = torch.float16 if device == 'cuda' else torch.bfloat16

    def step() -> Any:
        with torch.no_grad(), torch.autocast(device, enabled=amp, dtype=dtype):
            return model.test_step(batch)

    return step


def training_step(model: Any, batch: dict[str, list], cfg: Config, amp: bool) -> Callable[[], Any]:
    """A function that trains on a batch, with the config's optimizer: forward, losses, backward, update."""
    amp_type = {'type': 'AmpOptimWrapper'} if amp else {}
    optim_wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, **amp_type})
    model.train()
    return lambda: model.train_step(batch, optim_wrapper)


def measure(step: Callable[[], Any], images: int, device: torch.device, warmup: int, repeats: int) -> Speed:
    """Run `step` on a batch of `images`, first `warmup` times unmeasured, then `repeats` times (at least 2)."""
    _reset_peak(device)
    seconds = []
    for _ in range(warmup + repeats):
        _synchronise(device)
        start = time.perf_counter()
        step()
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(seconds[warmup:], n=4, method='inclusive')
    return Speed(images, median, low, high, _peak_mib(device))


def _synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path('/proc/self/clear_refs')).exists():
        clear.write_text('5')  # Linux: sets VmHWM back to the present size, man 5 proc


def _peak_mib(device: torch.device) -> float:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    if (status := Path('/proc/self/status')).exists():
        return int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the whole process so far
    return peak / 2**20 if sys.platform == 'darwin' else peak / 1024
