"""Detect objects in an image or a folder of images.

`python demo/image_demo.py IMAGE CONFIG CHECKPOINT` writes a picture with boxes and a JSON file for each image.
"""

import argparse

from mmengine.utils import track_iter_progress

from ddetr.apis import DetInferencer, list_images
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='image, or folder of images')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weight file')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score to draw and write')
    parser.add_argument('--out-dir', default='outputs', help='where to write; by default outputs/')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; by default a GPU if there is one')
    add_cfg_options(parser)
    parser.add_argument('--allow-partial', action='store_true', help='take of the checkpoint what fits')
    args = parser.parse_args()
    images = list_images(args.image)
    detector = DetInferencer(args.config, args.checkpoint, args.device, args.cfg_options, args.allow_partial)
    for image in track_iter_progress(images) if len(images) > 1 else images:
        written = detector.save(image, args.out_dir, args.score_thr)
        if len(images) == 1:
            print(f'{written.detected} detections: {written.picture}, {written.detections}')
    if len(images) > 1:
        print(f'\n{len(images)} pictures and JSON files in {args.out_dir}')


if __name__ == '__main__':
    run_cli(main)
