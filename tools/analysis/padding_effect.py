"""Measure how much padding changes detections: each image alone against the same image padded.

    python tools/analysis/padding_effect.py CONFIG CHECKPOINT IMAGES

The transformer ignores padding exactly (tests/models/detectors). The backbone does not: from its second layer on,
features in the padded area are not zero, unlike the zero padding of convolutions at the border of an unpadded image.
The original code behaves in the same way.
"""

import argparse
from typing import Any, NamedTuple

import torch
from torchvision.ops import box_iou

from ddetr.apis import init_detector, list_images, prepare_image
from ddetr.utils.cli import run_cli
from ddetr.utils.progress import track


class Difference(NamedTuple):
    """Effect of padding on one image; the last two refer to the detections that changed most."""

    tokens: float  # relative change of the tokens (Euclidean norm)
    score: float
    lost_iou: float  # 1 - IoU with the same detection in the padded image


@torch.no_grad()
def compare(model: Any, image: str, factor: float, score_thr: float) -> Difference:
    """Run a detector on an image and on the image padded to `factor` times its sides."""
    data = model.data_preprocessor(prepare_image(model, image))
    pixels, samples = data['inputs'], data['data_samples']
    height, width = pixels.shape[-2:]
    feats, found = model.extract_feat(pixels), model(pixels, samples, mode='predict')[0].pred_instances
    canvas = (round(height * factor), round(width * factor))
    padded = pixels.new_zeros(1, 3, *canvas)
    padded[..., :height, :width] = pixels
    feats_padded = model.extract_feat(padded)
    found_padded = model(padded, samples, mode='predict')[0].pred_instances
    kept = [p[..., : f.shape[-2], : f.shape[-1]] for p, f in zip(feats_padded, feats, strict=True)]
    change = sum((a - b).square().sum() for a, b in zip(kept, feats, strict=True))
    tokens = (change / sum(f.square().sum() for f in feats)).sqrt().item()

    found = found[found.scores > score_thr]
    if not len(found):
        return Difference(tokens, 0.0, 0.0)
    same_class = found.labels[:, None] == found_padded.labels
    iou, twin = (box_iou(found.bboxes, found_padded.bboxes) * same_class).max(1)
    return Difference(
        tokens, (found.scores - found_padded.scores[twin]).abs().max().item(), (1 - iou).max().item()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint')
    parser.add_argument('images', help='image or folder')
    parser.add_argument(
        '--num-images', type=int, default=20, help='maximum number of images (default: %(default)s)'
    )
    parser.add_argument(
        '--factor', type=float, default=1.5, help='ratio of padded to unpadded side (default: %(default)s)'
    )
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score of detections (default: %(default)s)'
    )
    args = parser.parse_args()
    model = init_detector(args.config, args.checkpoint)
    images = list_images(args.images)[: args.num_images]
    rows = torch.tensor(
        [compare(model, str(image), args.factor, args.score_thr) for image in track(images, 'comparing')]
    )
    print(f'{len(images)} images, each side padded to {args.factor} times its length')
    for name, column in zip(('tokens, relative', 'score', '1 - IoU of the box'), rows.T, strict=True):
        print(f'{name:24s} median change {column.median():.2e}, largest {column.max():.2e}')


if __name__ == '__main__':
    run_cli(main)
