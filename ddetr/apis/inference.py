"""Detection on images from Python: a model with its weights, pictures in, boxes out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn

from ddetr.datasets.transforms import LoadAnnotations
from ddetr.engine.config import check_config, dataset_of, explain_build_errors, load_config
from ddetr.engine.saved_config import find_checkpoint, saved_config
from ddetr.registry import MODELS, SCOPE, TRANSFORMS
from ddetr.structures import DetDataSample
from ddetr.utils.coco_classes import COCO_CLASSES
from ddetr.utils.errors import CheckpointError, ConfigError, InputError
from ddetr.visualization import DetLocalVisualizer
from ddetr.weights import load_weights, read_checkpoint

from .batching import read_ahead, run_in_batches
from .exported import ExportedDetector, is_exported
from .results import Selection, detection_rows, to_supervision
from .sources import Source
from .tiling import Tiling, detect_tiled
from .writers import Target, open_writers

# a file or address; (H, W, 3) BGR uint8 as OpenCV reads it; an image of Pillow
Image = str | Path | np.ndarray | PIL.Image.Image


class Written(NamedTuple):
    """What `DetInferencer.save` wrote for one image."""

    picture: Path
    detections: Path  # JSON
    detected: int  # how many boxes are in both


def init_detector(
    config: str | Path | Config | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    allow_partial: bool = False,
) -> nn.Module:
    """Build a detector and load its weights.

    Args:
        config: File, name of a config that comes with ddetr, or what `load_config` made of it. Without one, the config
            that a training checkpoint carries. Or, alone, a file that `ddetr export` has written.
        checkpoint: Weights of any format that we know, a work directory, or an exported file, which needs no config;
            without one the model is as initialised.
        device: By default a GPU if there is one, else the CPU.
        cfg_options: Values by dotted config key, where `config` is no `Config` already.
        allow_partial: Take what fits of the weights.

    Returns:
        The model in evaluation mode, an `ExportedDetector` for exported files, with the attributes `cfg` and
        `dataset_meta`, whose `classes` are the names that the checkpoint carries (else those of the config, else COCO's
        for 80 classes, else numbers), and whose `category_ids` are those of the training's annotation file, if the
        checkpoint carries them.

    Raises:
        InputError: config or checkpoint cannot be used.
    """
    if is_exported(checkpoint or config):
        return _init_exported(config, checkpoint, device, bool(cfg_options) or allow_partial)
    content: dict[str, Any] | None = None
    if checkpoint is not None:
        checkpoint = find_checkpoint(checkpoint)
        content = read_checkpoint(checkpoint)
    if isinstance(config, Config):
        cfg = config
    elif config is not None:
        cfg = load_config(config, cfg_options)
    elif content is not None:
        cfg = saved_config(content, str(checkpoint), cfg_options)
    else:
        raise ConfigError('init_detector needs a config or a checkpoint.')
    check_config(cfg)
    if DefaultScope.get_current_instance() is None:
        init_default_scope(SCOPE)
    with explain_build_errors():
        model: Any = MODELS.build(cfg.model)
    classes = None
    if checkpoint is not None:
        classes = load_weights(model, checkpoint, content, allow_partial=allow_partial).classes
    elif hasattr(model, 'init_weights'):
        model.init_weights()
    model.cfg = cfg
    model.dataset_meta = {'classes': classes or _classes_of(cfg, model), **_category_ids(content, classes)}
    return model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()


def _init_exported(config: Any, checkpoint: Any, device: str | None, with_options: bool) -> nn.Module:
    path = checkpoint or config
    if (config is not None and checkpoint is not None) or with_options:
        raise InputError(
            f'{path} is an exported file, which takes no config, no --cfg-options and no --allow-partial.'
        )
    if DefaultScope.get_current_instance() is None:
        init_default_scope(SCOPE)
    return ExportedDetector(path, device)


def inference_detector(
    model: nn.Module, images: Image | Sequence[Image]
) -> DetDataSample | list[DetDataSample]:
    """Detect objects in an image or in a list of them, one after the other, with a model from `init_detector`.

    For many images, `DetInferencer.predict` takes batches and gives results as they come.

    Returns:
        For each image a sample with `pred_instances` in pixels of the image, best first; for a single image just
        that sample.

    Raises:
        InputError: An image cannot be read.
    """
    if isinstance(images, (str, Path, np.ndarray, PIL.Image.Image)):
        return _run_batch(model, [prepare_image(model, images)])[0]
    return [_run_batch(model, [prepare_image(model, image)])[0] for image in images]


class Prediction(NamedTuple):
    """One image and what was found in it."""

    source: Any  # as it was given
    image: np.ndarray  # (H, W, 3) BGR uint8
    sample: DetDataSample


class Failure(NamedTuple):
    """An image that could not be read."""

    source: Any
    error: InputError


class _Loaded(NamedTuple):
    source: Any
    image: np.ndarray
    batch: (
        dict[str, list] | None
    )  # of this image alone, for the data preprocessor; None: too large, to be tiled


class DetInferencer:
    """A detector for images of all kinds: detections, pictures with boxes, JSON.

    `detector(image)` gives a sample as `inference_detector` does, `detector.predict(images)` goes through any number
    of images in batches, and `predict_files` (prediction.py) writes what it finds to files.

    Args:
        config: See `init_detector`.
        checkpoint: See `init_detector`.
        device: See `init_detector`.
        cfg_options: See `init_detector`.
        allow_partial: See `init_detector`.
        tiling: Cut images that are larger than a tile into tiles.
    """

    def __init__(
        self,
        config: str | Path | Config | None = None,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        cfg_options: dict[str, Any] | None = None,
        allow_partial: bool = False,
        tiling: Tiling | None = None,
    ) -> None:
        if checkpoint is None and not is_exported(config):
            raise CheckpointError('DetInferencer needs the checkpoint to detect with.')
        if tiling is not None:
            tiling.check()
        model: Any = init_detector(config, checkpoint, device, cfg_options, allow_partial)
        self.model = model
        self.tiling = tiling
        self.classes: Sequence[str] = model.dataset_meta['classes']
        self.visualizer = DetLocalVisualizer()
        self.visualizer.dataset_meta = model.dataset_meta

    def __call__(self, image: Image) -> DetDataSample:
        """Detect objects in one image; see `inference_detector`."""
        (result,) = self.predict([image])
        if isinstance(result, Failure):
            raise result.error
        return result.sample

    def predict(
        self, images: Iterable[Image | Source], batch_size: int = 1
    ) -> Iterator[Prediction | Failure]:
        """Detect objects in images, in their order, in batches of images that are of equal size for the model.

        A batch changes nothing: no image is padded for its neighbours. Images are read as needed, so that `images` may
        be a generator of any length; at most `batching.WINDOW` batches are held in memory.

        Args:
            images: Files, addresses, arrays, PIL images, or `Source`s of images.
            batch_size: The most images in a batch.
        """
        if batch_size < 1:
            raise InputError(f'batch_size={batch_size}: at least one image makes a batch.')
        loaded = read_ahead(self._load, images, batch_size)
        return run_in_batches(loaded, _size_for_model, self._run, batch_size)

    def draw(self, image: np.ndarray, sample: DetDataSample, score_thr: float) -> np.ndarray:
        """The (H, W, 3) BGR uint8 image with the boxes that score at least `score_thr`, enlarged if it is small."""
        found = sample.pred_instances.cpu().numpy()
        return self.visualizer.draw_instances(image[..., ::-1], found[found.scores >= score_thr])[..., ::-1]

    def save(self, image: str | Path, out_dir: str | Path, score_thr: float = 0.3) -> Written:
        """Detect, and write `NAME.png` with boxes and `NAME.json` into a folder, NAME with its suffix.

        The JSON has the image's file name, width and height in pixels and a list of detections, best first, each
        with `label` (from 0), `class`, `score` and `bbox`, x1 y1 x2 y2 in pixels of the image.
        """
        (result,) = self.predict([image])
        if isinstance(result, Failure):
            raise result.error
        found, name = Selection(score_thr)(result.sample), Path(image).name
        target = Target(Path(out_dir), self.visualizer, self.classes, ())
        with open_writers(('picture', 'json'), target) as write:
            write(name, result.image, found)
        return Written(target.path(name, '.png'), target.path(name, '.json'), len(found.pred_instances))

    def to_json(self, sample: DetDataSample, score_thr: float) -> list[dict[str, Any]]:
        """The detections that score at least `score_thr` as plain values; see `save`."""
        return detection_rows(Selection(score_thr)(sample), self.classes)

    def to_supervision(self, sample: DetDataSample, score_thr: float = 0.0) -> Any:
        """The detections as `supervision.Detections` with the classes' names; needs the package `supervision`."""
        return to_supervision(Selection(score_thr)(sample).pred_instances, self.classes)

    def _load(self, source: Image | Source) -> '_Loaded | Failure':
        image = str(source.place) if isinstance(source, Source) else source
        try:
            array = load_image(self.model, image)
            if self.tiling is not None and self.tiling.cuts(array):
                return _Loaded(source, array, None)
            path = str(image) if isinstance(image, (str, Path)) else None
            return _Loaded(source, array, _prepare(self.model, array, path))
        except InputError as error:
            return Failure(source, error)

    def _run(self, items: 'list[_Loaded | Failure]') -> list[Prediction | Failure]:
        """Results of one batch of images of equal size, of one image for tiling, or of one failure."""
        loaded = [item for item in items if isinstance(item, _Loaded)]
        if not loaded:
            return [item for item in items if isinstance(item, Failure)]
        batches = [item.batch for item in loaded if item.batch is not None]
        try:
            if self.tiling is not None and not batches:
                samples = [detect_tiled(self._detect_arrays, item.image, self.tiling) for item in loaded]
            else:
                samples = _run_batch(self.model, batches)
        except InputError as error:  # such as an image with fewer tokens than there are queries
            return [Failure(item.source, error) for item in loaded]
        return [
            Prediction(item.source, item.image, sample) for item, sample in zip(loaded, samples, strict=True)
        ]

    def _detect_arrays(self, images: Sequence[np.ndarray]) -> list[DetDataSample]:
        items: list[_Loaded | Failure] = [
            _Loaded(None, image, _prepare(self.model, image, None)) for image in images
        ]
        results = run_in_batches(items, _size_for_model, self._run, len(images))
        samples = []
        for result in results:
            if isinstance(result, Failure):
                raise result.error
            samples.append(result.sample)
        return samples


def _size_for_model(item: '_Loaded | Failure') -> tuple[int, ...] | None:
    if isinstance(item, Failure) or item.batch is None:
        return None
    return tuple(item.batch['inputs'][0].shape)


def load_image(model: Any, image: Image) -> np.ndarray:
    """An image as (H, W, 3) BGR uint8, read as the config's test pipeline reads it.

    Raises:
        InputError: The file cannot be read, or the array is no such image.
    """
    if isinstance(image, PIL.Image.Image):
        return np.ascontiguousarray(np.asarray(PIL.ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1])
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f'an image array is (H, W, 3) BGR uint8; this one is {image.shape} {image.dtype}: convert it first.'
            )
        return image
    try:
        return TRANSFORMS.build(_pipeline(model.cfg)[0])({'img_path': str(image)})['img'].astype(np.uint8)
    except OSError as error:
        raise InputError(f'image {image} cannot be read: {error}.') from error


def prepare_image(model: Any, image: Image) -> dict[str, list]:
    """One image as a batch for `model.data_preprocessor`, brought to size as in testing."""
    path = None if isinstance(image, (np.ndarray, PIL.Image.Image)) else str(image)
    return _prepare(model, load_image(model, image), path)


def _prepare(model: Any, image: np.ndarray, path: str | None) -> dict[str, list]:
    """See `prepare_image`, of an image that was read already."""
    load, *steps = _pipeline(model.cfg)
    shape = image.shape[:2]
    array = image.astype(np.float32) if load.get('to_float32') else image
    results = {'img_id': 0, 'img_path': path, 'img': array, 'img_shape': shape, 'ori_shape': shape}
    packed = Compose(steps)(results)
    return {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}


@torch.no_grad()
def _run_batch(model: Any, batches: Sequence[dict[str, list]]) -> list[DetDataSample]:
    """Detections of images of equal size, each given as a batch of its own."""
    return model.test_step({key: [value for batch in batches for value in batch[key]] for key in batches[0]})


def _pipeline(cfg: Config) -> list[dict[str, Any]]:
    """The steps of testing but for the annotations, which the user's images do not have."""
    steps = dataset_of(cfg.get('test_dataloader', {})).get('pipeline', ())
    steps = [step for step in steps if _component(step) is not LoadAnnotations]
    if not steps or not _component(steps[0]).__name__.startswith('Load'):
        raise ConfigError(
            'the config has no test_dataloader.dataset.pipeline that starts with LoadImageFromFile: '
            'it says how images are brought to size.'
        )
    return steps


def _component(step: dict[str, Any]) -> Any:
    """A step's class; configs name it with a scope (`mmdet.LoadAnnotations`), without one, or by itself."""
    return TRANSFORMS.get(step['type']) if isinstance(step['type'], str) else step['type']


def _category_ids(content: Mapping[str, Any] | None, classes: Sequence[str] | None) -> dict[str, list[int]]:
    """The classes' ids in the annotation file that a checkpoint was trained on, if it tells."""
    meta = (content or {}).get('meta')
    ids = meta.get('category_ids') if isinstance(meta, Mapping) else None
    fits = isinstance(ids, (list, tuple)) and classes is not None and len(ids) == len(classes)
    return {'category_ids': [int(number) for number in ids]} if ids is not None and fits else {}


def _classes_of(cfg: Config, model: nn.Module) -> Sequence[str]:
    metainfo = dataset_of(cfg.get('test_dataloader', {})).get('metainfo') or {}
    if 'classes' in metainfo:
        return metainfo['classes']
    number: Any = getattr(model, 'num_classes', len(COCO_CLASSES))
    return COCO_CLASSES if number == len(COCO_CLASSES) else [f'class {label}' for label in range(number)]
