"""Train a detector; same as `ddetr train`: `python tools/train.py configs/...py`."""

from ddetr.cli import run_tool, train
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(train)


if __name__ == '__main__':
    run_cli(main)
