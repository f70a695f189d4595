"""torchrun that ends as the processes do that it has started: `python tools/launch.py [arguments of torchrun]`.

A training that was asked to end and has saved a checkpoint ends with 75 (tools/train.py), where torchrun has 1 for
everything that is not 0. SIGUSR1, which Slurm can send ahead of a time limit, is handled as SIGTERM is.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ddetr.utils.cli import INTERRUPTED_NOTE
from ddetr.utils.errors import TrainingInterrupted


def main() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, 'interrupted')
        os.environ[INTERRUPTED_NOTE] = str(note)
        try:
            torchrun.main(sys.argv[1:])
        except (SignalException, ChildFailedError):
            if note.exists():
                sys.exit(TrainingInterrupted.EXIT_CODE)
            raise


if __name__ == '__main__':
    main()
