"""Repeatedly kill a training run at random moments and resume it."""

import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddetr.analysis.resume_check import ACCUMULATION, EMA, WORKERS
from ddetr.analysis.trainings import End, Training, differences
from ddetr.engine.saved_config import LAST
from ddetr.utils.errors import TrainingInterrupted
from ddetr.weights import read_checkpoint

# save after every iteration, so that many kills hit a save
OPTIONS = {
    **WORKERS,
    **EMA,
    **ACCUMULATION,
    'train_cfg.max_epochs': 3,
    'default_hooks.checkpoint.by_epoch': False,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
}


class Kills(NamedTuple):
    """Result of a training run that was killed repeatedly until it finished."""

    killed: int  # number of times that the process died without saving
    saved: int  # number of times that it saved and exited with code 75
    apart: dict[str, float]  # from the uninterrupted training, see `differences`


def check_kills(
    config: str, data: Mapping[str, Any], folder: Path, numbers: list[int], seed: int
) -> list[Kills]:
    """Send the signals at random moments, one after each start or resume of a training run.

    A finished run is compared with the uninterrupted one, and a new run begins.

    Raises:
        CheckpointError: The latest checkpoint cannot be read after a kill.
        RuntimeError: A training run ended for another reason than a signal.
    """
    training, draw = Training(config, {**data, **OPTIONS}), random.Random(seed)
    begin = time.monotonic()
    training.run(folder / 'whole')
    duration, left = time.monotonic() - begin, list(numbers)
    last = Path((folder / 'whole' / LAST).read_text()).name
    found: list[Kills] = []
    while left:
        work_dir, killed, saved = folder / str(len(found)), 0, 0
        while True:
            end = End(left[-1], draw.uniform(0.05, 1.0) * duration) if left else None
            (code,) = training.run(work_dir, 'auto', end)
            if code == 0:
                break
            if code not in (-signal.SIGKILL, -signal.SIGTERM, TrainingInterrupted.EXIT_CODE):
                raise RuntimeError(f'the training ended with {code}: see {work_dir}/console.txt')
            saved += code == TrainingInterrupted.EXIT_CODE
            killed += code < 0
            left.pop()
            if (work_dir / LAST).exists():
                read_checkpoint((work_dir / LAST).read_text())
        found.append(Kills(killed, saved, differences(folder / 'whole' / last, work_dir / last)))
    return found
