"""Run the project's commands in processes forked from one that has already imported the libraries.

Importing PyTorch, torchvision and mmengine takes longer than the commands themselves. The project's own code is not
imported before the fork.
"""

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from pathlib import Path

LIBRARIES = (
    'cv2', 'torch._dynamo', 'torchvision.models', 'scipy.optimize', 'pycocotools.coco', 'yapf.yapflib.yapf_api',
    'matplotlib.figure', 'matplotlib.backends.backend_agg', 'mmengine.model', 'mmengine.optim', 'mmengine.runner',
    'mmengine.visualization', 'mmcv.transforms',
)  # fmt: skip


class CommandServer:
    """A second process that forks a third for each command.

    Args:
        env: Environment variables of the second process. A command must have the same: libraries read some of them
            when they are imported.
    """

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            start_new_session=True,
        )  # fmt: skip

    def run(self, words: list[str], cwd: Path, output: Path, timeout: float) -> int:
        """Run `python *words` in `cwd`, write stdout and stderr to the file `output`, return the exit code."""
        request = {'words': words, 'cwd': str(cwd), 'output': str(output)}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.close()
            raise subprocess.TimeoutExpired(words, timeout, output.read_text())
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End the second process and what it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def serve() -> None:
    """Fork for each line of stdin; the child returns from here and runs its command as the main program."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            become(**request)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def become(words: list[str], cwd: str, output: str) -> None:
    """Make this process what `python *words` starts as, and run that."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.chdir(cwd)
    import numpy as np

    np.random.seed()  # else every command draws the same numbers
    is_module = words[0] == '-m'
    sys.argv = words[is_module:]
    sys.path[0] = cwd if is_module else str(Path(words[0]).resolve().parent)
    if is_module:
        runpy.run_module(words[1], run_name='__main__', alter_sys=True)
    else:
        runpy.run_path(words[0], run_name='__main__')


if __name__ == '__main__':
    serve()
