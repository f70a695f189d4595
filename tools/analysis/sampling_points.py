"""Visualise where a detector looks: the sampling points of deformable attention, coloured by attention weight.

    python tools/analysis/sampling_points.py IMAGE CONFIG CHECKPOINT                  # top detection, all layers
    python tools/analysis/sampling_points.py IMAGE CONFIG CHECKPOINT --detection 0 1 2
    python tools/analysis/sampling_points.py IMAGE CONFIG CHECKPOINT --split heads --layer 6 --zoom
    python tools/analysis/sampling_points.py IMAGE CONFIG CHECKPOINT --token 240 130  # encoder token

Works for every detector that uses the deformable attention of ddetr_ops, including custom ones.
"""

import argparse
from pathlib import Path
from typing import Any

from ddetr.analysis.sampling import ImageLook, look_at
from ddetr.apis import init_detector
from ddetr.datasets.transforms import LoadImageFromFile
from ddetr.utils.cli import add_cfg_options, run_cli
from ddetr.utils.errors import InputError
from ddetr.visualization.labels import class_name, label_text
from ddetr.visualization.sampling_points import Panel, SampledPoints, draw_panels, panels_of


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('image', help='image file')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint')
    parser.add_argument(
        '--detection',
        type=int,
        nargs='+',
        default=[0],
        metavar='N',
        help='indices of detections, from 0, best first (default: 0)',
    )
    parser.add_argument(
        '--token',
        type=float,
        nargs=2,
        metavar=('X', 'Y'),
        help='show the encoder token at this pixel instead of a detection',
    )
    parser.add_argument('--level', type=int, default=0, help='feature level of the token; 0 is the finest')
    parser.add_argument('--layer', type=int, help='show only this layer, numbered from 1')
    parser.add_argument(
        '--split', choices=['layers', 'heads', 'levels'], default='layers',
        help='content of the panels; heads and levels refer to --layer (default: the last layer)',
    )  # fmt: skip
    parser.add_argument('--zoom', action='store_true', help='crop to the area around the points')
    parser.add_argument('--out', help='.png, .jpg, .pdf or .svg file (default: outputs/NAME_points.png)')
    parser.add_argument('--device', help='device (default: a GPU if available)')
    add_cfg_options(parser)
    args = parser.parse_args()
    model: Any = init_detector(args.config, args.checkpoint, args.device, args.cfg_options)
    look = look_at(model, args.image)
    rows, titles = [], []
    if args.token:
        x, y = args.token
        rows.append(panels_of(_layers(look.token(x, y, args.level), args.layer), args.split, None))
        titles.append(f'encoder, token at ({x:g}, {y:g}) on level {args.level}')
    for detection in () if args.token else args.detection:
        rows.append(_panels(look, detection, args.layer, args.split))
        titles.append(_title(look, detection, model.dataset_meta['classes']))
    out = args.out or Path('outputs', f'{Path(args.image).stem}_points.png')
    image: Any = LoadImageFromFile().transform({'img_path': args.image})
    print(draw_panels(image['img'][..., ::-1], rows, out, titles, args.zoom))


def _panels(look: ImageLook, detection: int, layer: int | None, split: str) -> list[Panel]:
    points = _layers(look.detection(detection), layer)
    return panels_of(points, split, look.sample.pred_instances.bboxes[detection].numpy())


def _layers(points: list[SampledPoints], layer: int | None) -> list[SampledPoints]:
    if layer is None:
        return points
    if not 1 <= layer <= len(points):
        raise InputError(f'--layer {layer} must be between 1 and {len(points)}.')
    return points[layer - 1 : layer]


def _title(look: ImageLook, detection: int, classes: list[str]) -> str:
    found = look.sample.pred_instances[detection]
    return label_text(class_name(classes, int(found.labels)), float(found.scores))


if __name__ == '__main__':
    run_cli(main)
