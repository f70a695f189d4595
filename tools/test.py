"""Evaluate a checkpoint; same as `ddetr test`: `python tools/test.py configs/...py work_dirs/.../epoch_50.pth`."""

from ddetr.cli import run_tool, test
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(test)


if __name__ == '__main__':
    run_cli(main)
