"""Convert weights between projects; same as `ddetr convert`."""

from ddetr.cli import convert, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(convert)


if __name__ == '__main__':
    run_cli(main)
