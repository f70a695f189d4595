"""Detect objects in an image or a folder of images, as `ddetr predict` does.

`python demo/image_demo.py IMAGE CONFIG CHECKPOINT` writes a picture with boxes and a JSON file for each image.
"""

import argparse

from ddetr.cli import predict
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('inputs', metavar='IMAGE', nargs=1, help='image, folder of images, pattern, ...')
    parser.add_argument('config', help='config file, or name of one')
    parser.add_argument('checkpoint', help='checkpoint')
    predict.add_file_options(parser)
    predict.add_detector_options(parser)
    predict.run(parser.parse_args())


if __name__ == '__main__':
    run_cli(main)
