"""Check a detection dataset and report all faults; same as `ddetr check`: `python tools/data/doctor.py DATA`."""

from ddetr.cli import check, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(check)


if __name__ == '__main__':
    run_cli(main)
