"""Speed and memory of inference and training."""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from rich.console import Console
from rich.progress import track

COCO_TRAIN_IMAGES = 118_287  # size of train2017


class Speed(NamedTuple):
    """Timing of one step on one batch."""

    images: int  # batch size
    median_s: float  # median, followed by the quartiles
    low_s: float
    high_s: float
    peak_mib: float  # peak resident memory of the process on CPU, peak allocation of PyTorch on GPU
    step_mib: float = 0.0  # part of the peak that was added by the step
    speed: float = 1.0  # time of the first step divided by that of this one; median over rounds

    @property
    def images_per_s(self) -> float:
        return self.images / self.median_s

    @property
    def spread(self) -> float:
        """Interquartile range as a fraction of the median."""
        return (self.high_s - self.low_s) / self.median_s

    def hours_per_epoch(self, images: int = COCO_TRAIN_IMAGES) -> float:
        """Hours that one device needs for an epoch of `images` images."""
        return images / self.images_per_s / 3600


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with PyTorch's number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(': ')[-1] for line in lines if line.startswith('model name')), 'CPU')
    return f'{model}, {torch.get_num_threads()} threads'


def detection_step(model: Any, batch: dict[str, list], amp: bool) -> Callable[[], Any]:
    """Return a function that runs inference on a batch: normalisation, model, selection and rescaling of boxes."""
    model.eval()
    device = next(model.parameters()).device.type
    dtype = torch.float16 if device == 'cuda' else torch.bfloat16

    def step() -> Any:
        with torch.no_grad(), torch.autocast(device, enabled=amp, dtype=dtype):
            return model.test_step(batch)

    return step


def training_step(model: Any, batch: dict[str, list], cfg: Config, amp: bool) -> Callable[[], Any]:
    """Return a function that runs a training step with the config's optimizer: forward, losses, backward, update."""
    amp_type = {'type': 'AmpOptimWrapper'} if amp else {}
    optim_wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, **amp_type})
    model.train()
    return lambda: model.train_step(batch, optim_wrapper)


def measure(step: Callable[[], Any], images: int, device: torch.device, warmup: int, repeats: int) -> Speed:
    """Time `step` on a batch of `images`: `warmup` untimed calls, then `repeats` timed ones (at least 2)."""
    return measure_alternately({'': step}, images, device, warmup, repeats)['']


def measure_alternately(
    steps: Mapping[str, Callable[[], Any]],
    images: int,
    device: torch.device,
    warmup: int,
    repeats: int,
    cpu_time: bool = False,
) -> dict[str, Speed]:
    """Time all steps in interleaved rounds, so that disturbances of the machine affect all of them.

    A last round, not timed, measures memory: each step then starts without memory that earlier ones have freed, which
    takes longer than in a training or a long inference.

    Args:
        steps: Steps by name. Speeds are relative to the first one.
        images: Batch size of all steps.
        device: Device of all steps.
        warmup: Number of untimed rounds.
        repeats: Number of timed rounds, at least 2.
        cpu_time: Measure the CPU time of the process, summed over threads, instead of wall-clock time.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peaks, added = {}, {}
    # without `auto_refresh`, no second thread disturbs the measurement
    rounds = track(
        range(warmup + repeats), f'batch of {images}', console=Console(stderr=True), auto_refresh=False
    )
    for _ in rounds:
        for name, step in steps.items():
            _synchronise(device)
            start = clock()
            step()
            _synchronise(device)
            seconds[name].append(clock() - start)
    for name, step in steps.items():
        before = _reset_peak(device)
        step()
        _synchronise(device)
        peaks[name] = _peak_mib(device)
        added[name] = peaks[name] - before
    first = next(iter(seconds.values()))[warmup:]
    found = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times[warmup:], n=4, method='inclusive')
        speed = statistics.median(a / b for a, b in zip(first, times[warmup:], strict=True))
        found[name] = Speed(images, median, low, high, peaks[name], added[name], speed)
    return found


def _synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> float:
    """Free what allocators keep, and start a new peak with the current size, which is returned in MiB."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path('/proc/self/clear_refs')).exists():
        ctypes.CDLL(None).malloc_trim(0)  # return memory that glibc keeps after free
        clear.write_text('5')  # Linux: resets VmHWM to the current size, man 5 proc
    return _peak_mib(device)


def _peak_mib(device: torch.device) -> float:
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    if (status := Path('/proc/self/status')).exists():
        return int(status.read_text().split('VmHWM:')[1].split()[0]) / 1024  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of the whole process since its start
    return peak / 2**20 if sys.platform == 'darwin' else peak / 1024
