"""Find every fault of a detection dataset, as `ddetr check` does: `python tools/data/doctor.py DATA`."""

from ddetr.cli import check, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(check)


if __name__ == '__main__':
    run_cli(main)
