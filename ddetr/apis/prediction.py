"""Detect objects in images and videos and write the results to files: the implementation of `ddetr predict`."""

import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np

from ddetr.utils.errors import InputError
from ddetr.utils.files import picture_name, require_other_file, unfinished_file
from ddetr.utils.progress import track

from .inference import DetInferencer, Failure
from .results import Selection, detection_rows, labels_of
from .sources import Source, find_sources
from .writers import Target, category_ids_for, open_writers

Item = TypeVar('Item')

VIDEO_CODECS = {'.mp4': 'mp4v', '.avi': 'MJPG'}
DEFAULT_FPS = 25.0  # for cameras that do not report a frame rate


class PredictOptions(NamedTuple):
    """Options of `ddetr predict`, other than inputs and checkpoint."""

    out_dir: str = 'outputs'
    formats: Sequence[str] = ('picture', 'json')  # from `RESULT_FORMATS`
    score_thr: float = 0.3
    classes: Sequence[str | int] | None = None  # names or labels; None: all
    top_k: int | None = None  # maximum number of detections per image
    batch_size: int = 1  # maximum number of images per batch, all of equal size


class Summary(NamedTuple):
    """Summary of a prediction run."""

    images: int
    frames: int  # video frames
    detected: int  # number of detections
    failures: tuple[str, ...]  # one message each

    def __str__(self) -> str:
        counts = {'image': self.images, 'video frame': self.frames}
        return f'{self.detected} detections in ' + ' and '.join(
            f'{count} {what}{"s" * (count != 1)}' for what, count in counts.items() if count
        )


def predict_files(
    detector: DetInferencer,
    inputs: str | int | Path | Iterable[str | int | Path],
    options: PredictOptions = PredictOptions(),  # noqa: B008 (immutable)
) -> Summary:
    """Detect objects in images and videos, and write the results.

    Images that cannot be read are skipped and listed in the summary. Files are written atomically.

    Args:
        detector: Trained detector.
        inputs: See `sources.find_sources`.
        options: See `PredictOptions`. For a video `clip.mp4`, the files are `clip.mp4` with boxes and
            `clip.mp4.jsonl` with one line per frame. Suffixes other than .mp4 and .avi get .mp4 appended.

    Raises:
        InputError: Inputs or options are invalid; nothing is written.
    """
    several = not isinstance(inputs, (str, int, Path))
    sources = find_sources(inputs if several else [inputs])  # type: ignore[list-item, arg-type]
    selection = select(options, detector.classes)
    parts = []
    images = [source for source in sources if not source.is_video]
    if 'picture' in options.formats:
        _require_other_files(images, Path(options.out_dir))
    with interruptible() as stop:
        if images:
            parts.append(_predict_images(detector, images, options, selection, stop))
        for source in sources:
            if source.is_video and not stop.is_set():
                out = Path(options.out_dir, source.name)
                out = out if out.suffix.lower() in VIDEO_CODECS else out.with_name(f'{out.name}.mp4')
                parts.append(_predict_one_video(detector, source, out, options, selection, stop))
    return Summary(
        images=sum(part.images for part in parts),
        frames=sum(part.frames for part in parts),
        detected=sum(part.detected for part in parts),
        failures=tuple(chain.from_iterable(part.failures for part in parts)),
    )


def _require_other_files(images: Sequence[Source], out_dir: Path) -> None:
    """Raise an InputError if an output would overwrite one of the input images."""
    read = {os.path.realpath(str(source.place)) for source in images}
    for source in images:
        if os.path.realpath(picture := out_dir / picture_name(source.name)) in read:
            require_other_file(picture, picture)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Event set by the first Ctrl-C, so that completed results are still written. A second Ctrl-C exits at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield stop
        return
    earlier = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, earlier)

    signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, earlier)


def select(options: PredictOptions, classes: Sequence[str]) -> Selection:
    """Create the `Selection` for the options. Raise InputError for invalid values."""
    if math.isnan(options.score_thr):
        raise InputError(f'score_thr={options.score_thr} must be a number.')
    if options.top_k is not None and options.top_k < 1:
        raise InputError(f'top_k={options.top_k} must be at least 1.')
    labels = None if options.classes is None else labels_of(options.classes, classes)
    return Selection(options.score_thr, labels, options.top_k)


def _predict_images(
    detector: DetInferencer,
    sources: Sequence[Source],
    options: PredictOptions,
    selection: Selection,
    stop: threading.Event,
) -> Summary:
    meta = detector.model.dataset_meta
    target = Target(Path(options.out_dir), detector.visualizer, detector.classes, category_ids_for(meta))
    failures: list[str] = []
    done = detected = 0
    with open_writers(options.formats, target) as write:
        results = detector.predict(_until(stop, sources), options.batch_size)
        for result in track(results, 'images', len(sources)):
            done += 1
            if isinstance(result, Failure):
                failures.append(str(result.error))
                continue
            sample = selection(result.sample)
            write(result.source.name, result.image, sample)
            detected += len(sample.pred_instances)
    good = done - len(failures)
    if done < len(sources):
        failures.append(f'stopped by Ctrl-C: {len(sources) - done} images were skipped.')
    return Summary(good, 0, detected, tuple(failures))


def _predict_one_video(
    detector: DetInferencer,
    source: Source,
    out: Path,
    options: PredictOptions,
    selection: Selection,
    stop: threading.Event,
) -> Summary:
    try:
        return predict_video(detector, source.place, out, selection, options.batch_size, stop)
    except InputError as error:
        return Summary(0, 0, 0, (str(error),))


def predict_video(
    detector: DetInferencer,
    place: str | int,
    out: Path,
    selection: Selection,
    batch_size: int = 1,
    stop: threading.Event | None = None,
) -> Summary:
    """Write a video with boxes at the original frame rate, and `OUT.jsonl` with one line per frame.

    Small frames are enlarged for drawing. A camera is read until `stop` is set.

    Raises:
        InputError: The video cannot be opened, or has no frames.
    """
    if isinstance(place, str):
        require_other_file(out, place)
    video = cv2.VideoCapture(place)
    if not video.isOpened():
        raise InputError(f'video {place} does not exist or cannot be decoded.')
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if math.isfinite(rate) and rate > 0 else DEFAULT_FPS
    total = max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0) or None
    count = detected = 0
    with unfinished_file(out) as path, unfinished_file(f'{out}.jsonl') as lines_path:
        with lines_path.open('w') as lines, _video_writer(path, rate) as write:
            results = detector.predict(_until(stop, _frames(video)), batch_size)
            for result in track(results, f'frames of {place}', total):
                if isinstance(result, Failure):
                    raise result.error
                sample = selection(result.sample)
                write(detector.draw(result.image, sample, -math.inf))
                row = {
                    'frame': count,
                    'time_s': count / rate,
                    'detections': detection_rows(sample, detector.classes),
                }
                lines.write(json.dumps(row) + '\n')
                count, detected = count + 1, detected + len(sample.pred_instances)
        if not count:
            raise InputError(f'video {place} has no frames.')
    cut = (
        total is not None and count < 0.95 * total and not (stop and stop.is_set())
    )  # frame counts of containers are approximate
    failure = f'video {place}: only {count} of {total} frames could be decoded; the file is damaged.'
    return Summary(0, count, detected, (failure,) if cut else ())


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield frames, (H, W, 3) BGR uint8."""
    while (frame := video.read()[1]) is not None:
        yield frame


def _until(stop: threading.Event | None, items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        if stop is not None and stop.is_set():
            return
        yield item


@contextmanager
def _video_writer(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that writes (H, W, 3) BGR frames; the first frame determines the size."""
    writer: cv2.VideoWriter | None = None

    def write(frame: np.ndarray) -> None:
        nonlocal writer
        if writer is None:
            codec = cv2.VideoWriter.fourcc(*VIDEO_CODECS[path.suffix.lower()])
            writer = cv2.VideoWriter(str(path), codec, rate, (frame.shape[1], frame.shape[0]))
            if not writer.isOpened():
                raise InputError(
                    f'OpenCV cannot write {path.suffix} videos on this system: use an .avi file.'
                )
        writer.write(np.ascontiguousarray(frame))

    try:
        yield write
    finally:
        if writer is not None:
            writer.release()
