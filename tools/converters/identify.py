"""Identify the model and format of a checkpoint, and the matching config; same as `ddetr identify`."""

from ddetr.cli import identify, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(identify)


if __name__ == '__main__':
    run_cli(main)
