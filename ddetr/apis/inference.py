"""Python API for inference on images."""

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
from ddetr.utils.files import require_other_file
from ddetr.weights import load_weights, read_checkpoint

from .batching import read_ahead, run_in_batches
from .exported import ExportedDetector, is_exported
from .prepared import prepare_for_inference
from .results import Selection, detection_rows, to_supervision
from .sources import Source
from .tiling import Tiling, detect_tiled
from .writers import Target, open_writers

# path or URL; (H, W, 3) BGR uint8 array, as read by OpenCV; Pillow image
Image = str | Path | np.ndarray | PIL.Image.Image


class Written(NamedTuple):
    """Files written by `DetInferencer.save` for one image."""

    picture: Path
    detections: Path  # JSON file
    detected: int  # number of boxes in both files


def init_detector(
    config: str | Path | Config | None = None,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    allow_partial: bool = False,
) -> nn.Module:
    """Build a detector and load its weights.

    Args:
        config: Config file, name of a shipped config, or a loaded `Config`. None uses the config stored in a training
            checkpoint. May also be an exported file, without a checkpoint.
        checkpoint: Weights in any supported format, a work directory, or an exported file, which needs no config.
            None keeps the initial weights.
        device: Default: a GPU if there is one, otherwise the CPU.
        cfg_options: Values by dotted config key; ignored if `config` is a `Config`.
        allow_partial: Whether to load only the matching weights instead of raising an error.

    Returns:
        The model in evaluation mode (an `ExportedDetector` for exported files) with the attributes `cfg` and
        `dataset_meta`. `dataset_meta['classes']` are the names stored in the checkpoint, otherwise those of the config,
        COCO's for 80 classes, or numbers. `dataset_meta['category_ids']` are those of the training annotations, if
        stored in the checkpoint.

    Raises:
        InputError: The config or checkpoint is invalid.
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
    detector: nn.Module = model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    return detector.eval()


def _init_exported(config: Any, checkpoint: Any, device: str | None, with_options: bool) -> nn.Module:
    path = checkpoint or config
    if (config is not None and checkpoint is not None) or with_options:
        raise InputError(
            f'{path} is an exported file: config, --cfg-options and --allow-partial do not apply.'
        )
    if DefaultScope.get_current_instance() is None:
        init_default_scope(SCOPE)
    return ExportedDetector(path, device)


def inference_detector(
    model: nn.Module, images: Image | Sequence[Image]
) -> DetDataSample | list[DetDataSample]:
    """Detect objects in one image or a list of images with a model from `init_detector`.

    Images are processed one by one. For many images, `DetInferencer.predict` uses batches and yields results as they
    become available.

    Returns:
        A sample for each image, with `pred_instances` in pixels of the image, best first. A single image returns a
        single sample.

    Raises:
        InputError: An image cannot be read.
    """
    if isinstance(images, (str, Path, np.ndarray, PIL.Image.Image)):
        return _run_batch(model, [prepare_image(model, images)])[0]
    return [_run_batch(model, [prepare_image(model, image)])[0] for image in images]


class Prediction(NamedTuple):
    """One image and its detections."""

    source: Any  # the input, as passed
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
        dict[str, list[Any]] | None
    )  # batch of this image for the data preprocessor; None if the image is to be tiled


class DetInferencer:
    """High-level inference: detections, annotated images and JSON.

    `detector(image)` returns a sample, like `inference_detector`. `detector.predict(images)` processes any number of
    images in batches. `predict_files` (prediction.py) writes the results to files.

    Args:
        config: See `init_detector`.
        checkpoint: See `init_detector`.
        device: See `init_detector`.
        cfg_options: See `init_detector`.
        allow_partial: See `init_detector`.
        tiling: Tiling of images that are larger than a tile; None disables it.
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
            raise CheckpointError('DetInferencer needs a checkpoint.')
        if tiling is not None:
            tiling.check()
        model: Any = init_detector(config, checkpoint, device, cfg_options, allow_partial)
        self.model = model
        self.tiling = tiling
        self.classes: Sequence[str] = model.dataset_meta['classes']
        from ddetr.visualization import DetLocalVisualizer  # imports matplotlib

        self.visualizer = DetLocalVisualizer()
        self.visualizer.dataset_meta = model.dataset_meta

    def prepare(self, dtype: str = 'fp32') -> None:
        """Replace the model by its prepared version; see `prepare_for_inference`."""
        self.model = prepare_for_inference(self.model, dtype)

    def __call__(self, image: Image) -> DetDataSample:
        """Detect objects in one image; see `inference_detector`."""
        (result,) = self.predict([image])
        if isinstance(result, Failure):
            raise result.error
        return result.sample

    def predict(
        self, images: Iterable[Image | Source], batch_size: int = 1
    ) -> Iterator[Prediction | Failure]:
        """Detect objects in images, and yield the results in their order.

        Batches contain only images of equal input size, so results do not depend on `batch_size`. Images are read as
        needed, so `images` may be a generator of any length; at most `batching.WINDOW` batches are held in memory.

        Args:
            images: Paths, URLs, arrays, PIL images, or `Source` records of images.
            batch_size: Maximum number of images per batch.
        """
        if batch_size < 1:
            raise InputError(f'batch_size={batch_size} must be at least 1.')
        loaded = read_ahead(self._load, images, batch_size)
        return run_in_batches(loaded, _size_for_model, self._run, batch_size)

    def draw(self, image: np.ndarray, sample: DetDataSample, score_thr: float) -> np.ndarray:
        """Draw boxes with a score of at least `score_thr` on an image, (H, W, 3) BGR uint8; enlarges small images."""
        found = sample.pred_instances.cpu().numpy()
        return self.visualizer.draw_instances(image[..., ::-1], found[found.scores >= score_thr])[..., ::-1]

    def save(self, image: str | Path, out_dir: str | Path, score_thr: float = 0.3) -> Written:
        """Detect, and write the annotated image and `NAME.json` to a folder, such as `cat.jpg` and `cat.jpg.json`.

        The JSON contains the image's file name, width and height in pixels and a list of detections, best first, each
        with `label` (from 0), `class`, `score` and `bbox`, x1 y1 x2 y2 in pixels of the image.
        """
        name = Path(image).name
        target = Target(Path(out_dir), self.visualizer, self.classes, ())
        require_other_file(target.picture(name), image)
        (result,) = self.predict([image])
        if isinstance(result, Failure):
            raise result.error
        found = Selection(score_thr)(result.sample)
        with open_writers(('picture', 'json'), target) as write:
            write(name, result.image, found)
        return Written(target.picture(name), target.path(name, '.json'), len(found.pred_instances))

    def to_json(self, sample: DetDataSample, score_thr: float) -> list[dict[str, Any]]:
        """Detections with a score of at least `score_thr` as plain values; see `save`."""
        return detection_rows(Selection(score_thr)(sample), self.classes)

    def to_supervision(self, sample: DetDataSample, score_thr: float = 0.0) -> Any:
        """Detections as `supervision.Detections` with class names; needs the package `supervision`."""
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
        """Process one batch of equally sized images, one image to tile, or one failure."""
        loaded = [item for item in items if isinstance(item, _Loaded)]
        if not loaded:
            return [item for item in items if isinstance(item, Failure)]
        batches = [item.batch for item in loaded if item.batch is not None]
        try:
            if self.tiling is not None and not batches:
                samples = [detect_tiled(self._detect_arrays, item.image, self.tiling) for item in loaded]
            else:
                samples = _run_batch(self.model, batches)
        except InputError as error:  # for example, an image with fewer tokens than queries
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
    """Load an image as (H, W, 3) BGR uint8, with the loader of the config's test pipeline.

    Raises:
        InputError: The file cannot be read, or the array has another shape or dtype.
    """
    if isinstance(image, PIL.Image.Image):
        return np.ascontiguousarray(np.asarray(PIL.ImageOps.exif_transpose(image).convert('RGB'))[..., ::-1])
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f'image arrays must be (H, W, 3) BGR uint8, got {image.shape} {image.dtype}: convert it first.'
            )
        return image
    try:
        array: np.ndarray = TRANSFORMS.build(_pipeline(model.cfg)[0])({'img_path': str(image)})['img']
    except OSError as error:
        raise InputError(f'image {image} cannot be read: {error}.') from error
    return array.astype(np.uint8)


def prepare_image(model: Any, image: Image) -> dict[str, list[Any]]:
    """Prepare one image as a batch for `model.data_preprocessor`, resized as in testing."""
    path = None if isinstance(image, (np.ndarray, PIL.Image.Image)) else str(image)
    return _prepare(model, load_image(model, image), path)


def _prepare(model: Any, image: np.ndarray, path: str | None) -> dict[str, list[Any]]:
    """`prepare_image` for an image that is already loaded."""
    load, *steps = _pipeline(model.cfg)
    shape = image.shape[:2]
    array = image.astype(np.float32) if load.get('to_float32') else image
    results = {'img_id': 0, 'img_path': path, 'img': array, 'img_shape': shape, 'ori_shape': shape}
    packed = Compose(steps)(results)
    return {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}


@torch.no_grad()
def _run_batch(model: Any, batches: Sequence[dict[str, list[Any]]]) -> list[DetDataSample]:
    """Detect in images of equal size, given as one batch per image."""
    together = {key: [value for batch in batches for value in batch[key]] for key in batches[0]}
    samples: list[DetDataSample] = model.test_step(together)
    return samples


def _pipeline(cfg: Config) -> list[dict[str, Any]]:
    """Steps of the test pipeline without loading annotations, which the user's images do not have."""
    steps = dataset_of(cfg.get('test_dataloader', {})).get('pipeline', ())
    steps = [step for step in steps if _component(step) is not LoadAnnotations]
    if not steps or not _component(steps[0]).__name__.startswith('Load'):
        raise ConfigError(
            'the config has no test_dataloader.dataset.pipeline that starts with LoadImageFromFile: add one to '
            'define how images are resized.'
        )
    return steps


def _component(step: dict[str, Any]) -> Any:
    """Class of a step; configs give its name, with or without scope (`mmdet.LoadAnnotations`), or the class itself."""
    return TRANSFORMS.get(step['type']) if isinstance(step['type'], str) else step['type']


def _category_ids(content: Mapping[str, Any] | None, classes: Sequence[str] | None) -> dict[str, list[int]]:
    """Category ids of the training annotation file, if stored in the checkpoint."""
    meta = (content or {}).get('meta')
    ids = meta.get('category_ids') if isinstance(meta, Mapping) else None
    fits = isinstance(ids, (list, tuple)) and classes is not None and len(ids) == len(classes)
    return {'category_ids': [int(number) for number in ids]} if ids is not None and fits else {}


def _classes_of(cfg: Config, model: nn.Module) -> Sequence[str]:
    metainfo = dataset_of(cfg.get('test_dataloader', {})).get('metainfo') or {}
    if 'classes' in metainfo:
        classes: Sequence[str] = metainfo['classes']
        return classes
    number: Any = getattr(model, 'num_classes', len(COCO_CLASSES))
    return COCO_CLASSES if number == len(COCO_CLASSES) else [f'class {label}' for label in range(number)]
