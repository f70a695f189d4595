"""Detect objects in every frame of a video: `python demo/video_demo.py VIDEO CONFIG CHECKPOINT --out FILE.mp4`.

Writes the annotated video, and FILE.mp4.jsonl with one line of JSON per frame.
"""

from pathlib import Path

from ddetr.apis import PredictOptions
from ddetr.apis.prediction import interruptible, predict_video, select
from ddetr.cli import Parser, predict
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('video', help='video file, URL, or camera index')
    predict.add_detector_arguments(parser)
    parser.add_argument(
        '--out', default='outputs/video.mp4', help='annotated video, .mp4 or .avi (default: %(default)s)'
    )
    predict.add_detector_options(parser)
    args = parser.parse_args()
    options = PredictOptions(score_thr=args.score_thr, classes=args.classes, top_k=args.top_k)
    place = int(args.video) if args.video.isdecimal() else args.video
    detector = predict.build_inferencer(args)
    with interruptible() as stop:
        selection = select(options, detector.classes)
        summary = predict_video(detector, place, Path(args.out), selection, args.batch_size, stop)
    predict.report(summary, args.out)


if __name__ == '__main__':
    run_cli(main)
