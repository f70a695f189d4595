"""Detect objects in an image or a folder of images, like `ddetr predict`.

`python demo/image_demo.py IMAGE CONFIG CHECKPOINT` writes an annotated image and a JSON file for each image. Files
written by `ddetr export` need no config: `python demo/image_demo.py IMAGE model.onnx`.
"""

from ddetr.cli import Parser, predict
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('inputs', metavar='IMAGE', nargs=1, help='image, folder of images, pattern, ...')
    predict.add_detector_arguments(parser)
    predict.add_file_options(parser)
    predict.add_detector_options(parser)
    predict.run(parser.parse_args())


if __name__ == '__main__':
    run_cli(main)
