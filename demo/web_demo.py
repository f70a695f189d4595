"""Serve a detector as a web demo; same as `ddetr demo`: `python demo/web_demo.py CONFIG CHECKPOINT`."""

from ddetr.cli import demo, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(demo)


if __name__ == '__main__':
    run_cli(main)
