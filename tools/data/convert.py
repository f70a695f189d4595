"""Convert a dataset between COCO, Pascal VOC and YOLO format; same as `ddetr convert-data`."""

from ddetr.cli import convert_data, run_tool
from ddetr.utils.cli import run_cli


def main() -> None:
    run_tool(convert_data)


if __name__ == '__main__':
    run_cli(main)
