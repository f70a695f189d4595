"""Say what a checkpoint is and which config fits it, as `ddetr identify` does."""

from ddetr.cli import identify, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(identify)


if __name__ == '__main__':
    run_cli(main)
