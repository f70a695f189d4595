"""Print a complete config after inheritance and overrides; same as `ddetr configs`."""

from ddetr.cli import configs, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(configs)


if __name__ == '__main__':
    run_cli(main)
