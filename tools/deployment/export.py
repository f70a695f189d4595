"""Export a detector; same as `ddetr export`: `python tools/deployment/export.py CONFIG CHECKPOINT --to onnx`."""

from ddetr.cli import export, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(export)


if __name__ == '__main__':
    run_cli(main)
