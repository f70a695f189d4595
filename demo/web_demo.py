"""Serve a detector as a page in the browser, as `ddetr demo` does: `python demo/web_demo.py CONFIG CHECKPOINT`."""

from ddetr.cli import demo, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(demo)


if __name__ == '__main__':
    run_cli(main)
