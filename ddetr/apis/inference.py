"""Detection on images from Python: a model with its weights, pictures in, boxes out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn

from ddetr.datasets.transforms import LoadAnnotations
from ddetr.engine.config import check_config, dataset_of, explain_build_errors, load_config
from ddetr.registry import MODELS, SCOPE, TRANSFORMS
from ddetr.structures import DetDataSample
from ddetr.utils.coco_classes import COCO_CLASSES
from ddetr.utils.errors import ConfigError, InputError
from ddetr.utils.files import write_json
from ddetr.visualization import DetLocalVisualizer
from ddetr.weights import load_weights

Image = str | Path | np.ndarray  # a file, or (H, W, 3) BGR uint8 as OpenCV reads it
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


class Written(NamedTuple):
    """What `DetInferencer.save` wrote for one image."""

    picture: Path
    detections: Path  # JSON
    detected: int  # how many boxes are in both


def init_detector(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    allow_partial: bool = False,
) -> nn.Module:
    """Build a detector and load its weights.

    Args:
        config: File, or what `load_config` made of it.
        checkpoint: Weights of any format that we know; without one the model is as initialised.
        device: By default a GPU if there is one, else the CPU.
        cfg_options: Values by dotted config key, where `config` is a file.
        allow_partial: Take what fits of the weights.

    Returns:
        The model in evaluation mode, with the attributes `cfg` and `dataset_meta`, whose `classes` are the names
        that the checkpoint carries (else those of the config, else COCO's for 80 classes, else numbers).

    Raises:
        InputError: config or checkpoint cannot be used.
    """
    cfg = config if isinstance(config, Config) else load_config(config, cfg_options)
    check_config(cfg)
    if DefaultScope.get_current_instance() is None:
        init_default_scope(SCOPE)
    with explain_build_errors():
        model: Any = MODELS.build(cfg.model)
    classes = None
    if checkpoint is not None:
        classes = load_weights(model, checkpoint, allow_partial=allow_partial).classes
    elif hasattr(model, 'init_weights'):
        model.init_weights()
    model.cfg = cfg
    model.dataset_meta = {'classes': classes or _classes_of(cfg, model)}
    return model.to(device or ('cuda' if torch.cuda.is_available() else 'cpu')).eval()


def inference_detector(
    model: nn.Module, images: Image | Sequence[Image]
) -> DetDataSample | list[DetDataSample]:
    """Detect objects in an image or in a list of them, one after the other, with a model from `init_detector`.

    Returns:
        For each image a sample with `pred_instances` in pixels of the image, best first; for a single image just
        that sample.

    Raises:
        InputError: An image cannot be read.
    """
    if isinstance(images, (str, Path, np.ndarray)):
        return _detect(model, images)
    return [_detect(model, image) for image in images]


class DetInferencer:
    """A detector that writes what it finds: pictures with boxes, and JSON. It takes what `init_detector` takes."""

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        cfg_options: dict[str, Any] | None = None,
        allow_partial: bool = False,
    ) -> None:
        model: Any = init_detector(config, checkpoint, device, cfg_options, allow_partial)
        self.model = model
        self.classes: Sequence[str] = model.dataset_meta['classes']
        self.visualizer = DetLocalVisualizer()
        self.visualizer.dataset_meta = model.dataset_meta

    def __call__(self, image: Image) -> DetDataSample:
        """Detect objects in one image; see `inference_detector`."""
        return _detect(self.model, image)

    def draw(self, image: np.ndarray, sample: DetDataSample, score_thr: float) -> np.ndarray:
        """The (H, W, 3) BGR uint8 image with the boxes that score at least `score_thr`, enlarged if it is small."""
        found = sample.pred_instances.cpu().numpy()
        return self.visualizer.draw_instances(image[..., ::-1], found[found.scores >= score_thr])[..., ::-1]

    def save(self, image: str | Path, out_dir: str | Path, score_thr: float = 0.3) -> Written:
        """Detect, and write `NAME.png` with boxes and `NAME.json` into a folder, NAME with its suffix.

        The JSON has the image's file name, width and height in pixels and a list of detections, best first, each
        with `label` (from 0), `class`, `score` and `bbox`, x1 y1 x2 y2 in pixels of the image.
        """
        load = TRANSFORMS.build(_pipeline(self.model.cfg)[0])
        array = load({'img_path': str(image)})['img'].astype(np.uint8)
        sample = self(array)
        detections = self.to_json(sample, score_thr)
        # both suffixes: cat.jpg and cat.png must not overwrite each other
        stem = Path(out_dir, Path(image).name)
        height, width = sample.ori_shape
        written = Written(Path(f'{stem}.png'), Path(f'{stem}.json'), len(detections))
        self.visualizer.write(self.draw(array, sample, score_thr)[..., ::-1], written.picture)
        content = {'image': Path(image).name, 'width': width, 'height': height, 'detections': detections}
        write_json(content, written.detections)
        return written

    def to_json(self, sample: DetDataSample, score_thr: float) -> list[dict[str, Any]]:
        """The detections that score at least `score_thr` as plain values; see `save`."""
        found = sample.pred_instances.cpu()
        found = found[found.scores >= score_thr]
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)
        return [{'label': i, 'class': self.classes[i], 'score': score, 'bbox': box} for i, score, box in rows]


def list_images(path: str | Path) -> list[Path]:
    """The image itself, or a folder's images by name.

    Raises:
        InputError: There is no such file or folder, or no image in it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f'{path} does not exist: name an image or a folder of images.')
    images = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise InputError(f'{path} has no images ({", ".join(IMAGE_SUFFIXES)}).')
    return images


def prepare_image(model: Any, image: Image) -> dict[str, list]:
    """One image as a batch for `model.data_preprocessor`, brought to size as in testing."""
    results: dict[str, Any] = {'img_id': 0, 'img_path': str(image)}
    steps = _pipeline(model.cfg)
    if isinstance(image, np.ndarray):
        shape, steps = image.shape[:2], steps[1:]  # but for what would load the file
        results |= {'img_path': None, 'img': image, 'img_shape': shape, 'ori_shape': shape}
    packed = Compose(steps)(results)
    return {'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}


@torch.no_grad()
def _detect(model: Any, image: Image) -> DetDataSample:
    return model.test_step(prepare_image(model, image))[0]


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


def _classes_of(cfg: Config, model: nn.Module) -> Sequence[str]:
    metainfo = dataset_of(cfg.get('test_dataloader', {})).get('metainfo') or {}
    if 'classes' in metainfo:
        return metainfo['classes']
    number: Any = getattr(model, 'num_classes', len(COCO_CLASSES))
    return COCO_CLASSES if number == len(COCO_CLASSES) else [f'class {label}' for label in range(number)]
