"""Training progress: all loss terms in the log file, one short line on the terminal."""

import datetime
import logging
import sys
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.runner import LogProcessor as EngineLogProcessor
from mmengine.runner import Runner

from ddetr.registry import LOG_PROCESSORS


class ProgressLine(str):
    """Progress line for the log file; `short` is its terminal version."""

    short: str


@LOG_PROCESSORS.register_module()
class LogProcessor(EngineLogProcessor):
    """mmengine's log processor with short training lines on the terminal and memory usage on the CPU.

    TensorBoard, Weights & Biases, MLflow and the JSON log receive all loss terms and the total `images_per_second`.
    """

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Scalars and log line after an iteration; see mmengine."""
        tag, text = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != 'train':
            return tag, text
        if 'memory' not in tag and (memory := peak_memory_mib()) is not None:
            tag['memory'] = memory
            text += f'  memory: {memory}'
        batch_size = getattr(runner.train_dataloader.batch_sampler, 'batch_size', None)
        if tag.get('time') and batch_size:
            tag['images_per_second'] = batch_size * get_world_size() / tag['time']
        line = ProgressLine(text)
        position, bracket, _ = text.partition(']  ')  # such as "Epoch(train)  [9][100/270]"
        progress = short_progress(tag, runner.message_hub.runtime_info.get('eta'))
        line.short = f'{position}{bracket}{progress}'
        return tag, line


def short_progress(tag: dict[str, Any], eta_seconds: float | None) -> str:
    """Total loss, learning rate, speed, memory and remaining time, as far as available."""
    parts = []
    if 'loss' in tag:
        parts.append(f'loss {tag["loss"]:.4f}')
    if 'lr' in tag:
        parts.append(f'lr {tag["lr"]:.1e}')
    if 'images_per_second' in tag:
        parts.append(f'{tag["images_per_second"]:.1f} images/s')
    if 'memory' in tag:
        parts.append(f'{tag["memory"]} MiB')
    if eta_seconds is not None:
        parts.append(f'ETA {datetime.timedelta(seconds=int(eta_seconds))}')
    return '  '.join(parts)


def peak_memory_mib() -> int | None:
    """Peak resident memory of this process in MiB; None on Windows and if a GPU is available."""
    if torch.cuda.is_available() or sys.platform == 'win32':
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return peak // (1 << 20 if sys.platform == 'darwin' else 1 << 10)


class ShortLines(logging.Formatter):
    """Terminal formatter that wraps `formatter` and shortens progress lines."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, ProgressLine):
            record = logging.makeLogRecord({**record.__dict__, 'msg': record.msg.short})
        return self._formatter.format(record)
