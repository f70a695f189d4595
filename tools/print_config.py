"""Print a config as it is after its bases and overrides, as `ddetr configs` does."""

from ddetr.cli import configs, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(configs)


if __name__ == '__main__':
    run_cli(main)
