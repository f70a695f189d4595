"""Detect objects in every frame of a video: `python demo/video_demo.py VIDEO CONFIG CHECKPOINT --out FILE.mp4`."""

import argparse
from pathlib import Path

import cv2
from mmengine.utils import ProgressBar

from ddetr.apis import DetInferencer
from ddetr.utils import InputError
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('video', help='video file')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weight file')
    parser.add_argument('--out', default='outputs/video.mp4', help='the video with boxes, .mp4 or .avi')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score to draw')
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; by default a GPU if there is one')
    args = parser.parse_args()
    video = cv2.VideoCapture(args.video)
    if not video.isOpened():
        raise InputError(f'video {args.video} does not exist or cannot be decoded.')
    draw_video(
        video, DetInferencer(args.config, args.checkpoint, args.device), Path(args.out), args.score_thr
    )
    print(f'\n{args.out}')


def draw_video(video: cv2.VideoCapture, detector: DetInferencer, out: Path, score_thr: float) -> None:
    """Write the video with boxes; its frames are as large as the drawn pictures, small ones are enlarged."""
    out.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter.fourcc(*('mp4v' if out.suffix == '.mp4' else 'MJPG'))
    bar = ProgressBar(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    writer = None
    while (frame := video.read()[1]) is not None:
        picture = detector.draw(frame, detector(frame), score_thr)
        if writer is None:
            rate = video.get(cv2.CAP_PROP_FPS) or 25.0
            writer = cv2.VideoWriter(str(out), codec, rate, (picture.shape[1], picture.shape[0]))
        writer.write(picture)
        bar.update()
    if writer is None:
        raise InputError('the video has no frames.')
    writer.release()


if __name__ == '__main__':
    run_cli(main)
