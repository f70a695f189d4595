"""Export a checkpoint and verify the exported file: the implementation of `ddetr export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner

from ddetr.datasets.formats import data_options
from ddetr.datasets.shapes import ShapesRecipe, draw_image
from ddetr.deployment import Bounds, Exported, ExportOptions, export_detector, load
from ddetr.deployment.precision import AP_BOUNDS, BOUNDS, check_precision
from ddetr.deployment.runtimes import Runtime
from ddetr.deployment.targets import target_module
from ddetr.engine.config import dataset_of, load_config
from ddetr.registry import DATASETS
from ddetr.utils.errors import InputError
from ddetr.utils.progress import track

from .exported import detect
from .inference import init_detector, prepare_image
from .sources import list_images

PROOF_IMAGES = 3  # a batch of one and a batch of two
CALIBRATION_IMAGES = 64


class ExportCommand(NamedTuple):
    """Options of `ddetr export`, other than config and checkpoint."""

    to: str  # target
    out: str | None = None  # output file; default: next to the checkpoint
    options: ExportOptions = ExportOptions()
    images: Sequence[str] = ()  # verification images; default: from the test data, otherwise built-in shapes
    data: str | None = (
        None  # dataset folder or config on which AP is compared between PyTorch and the runtime
    )
    bounds: Bounds | None = None  # allowed differences; None: those of the precision
    max_ap_difference: float | None = None
    cfg_options: dict[str, Any] = {}
    allow_partial: bool = False
    calibration: str | None = None  # image folder for int8 calibration; default: the config's training data


class APs(NamedTuple):
    """Metrics of the detector in PyTorch and of the exported file."""

    pytorch: dict[str, float]
    exported: dict[str, float]


def export_model(config: str | None, checkpoint: str, command: ExportCommand) -> tuple[Exported, APs | None]:
    """Export a checkpoint and verify the result. The file is written only if the verification succeeds.

    Raises:
        InputError: See `init_detector` and `export_detector`; with `data`, also if AP differs by more than the bound.
    """
    module = target_module(command.to)
    precision = command.options.precision
    check_precision(command.to, precision)
    if precision == 'int8' and command.data is None:
        raise InputError(
            '--precision int8 changes detections and is verified by AP: pass a dataset with --data.'
        )
    torch.manual_seed(0)
    model: Any = init_detector(config, checkpoint, 'cpu', command.cfg_options, command.allow_partial)
    images = [
        prepare_image(model, image)['inputs'][0].numpy() for image in proof_images(model, command.images)
    ]
    path = Path(command.out) if command.out else Path(checkpoint).with_suffix(module.SUFFIX)
    bounds = command.bounds or BOUNDS[precision]
    if command.data is None:
        return export_detector(model, command.to, path, command.options, images, bounds), None
    found: list[APs] = []

    def check(written: Path) -> dict[str, Any]:
        aps = compare_ap(model, load(written), evaluation_config(model, command.data or ''))
        found.append(aps)
        check_ap(aps, command)
        return aps._asdict()

    calibration = calibration_images(model, command) if precision == 'int8' else ()
    exported = export_detector(model, command.to, path, command.options, images, bounds, check, calibration)
    return exported, found[0]


def proof_images(model: Any, given: Sequence[str]) -> list[Any]:
    """Verification images: those given, otherwise some of the config's test data or built-in shapes."""
    if given:
        return [*given, *[given[-1]] * (PROOF_IMAGES - len(given))]
    dataset = dataset_of(model.cfg.get('test_dataloader', {}))
    annotations = Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')
    if annotations.is_file():
        built = DATASETS.build({**dataset, 'test_mode': True})
        chosen = np.linspace(0, len(built) - 1, min(PROOF_IMAGES, len(built))).round().astype(int)
        return [built.get_data_info(int(index))['img_path'] for index in chosen]
    draws = np.random.default_rng(0)
    sizes = (192, 256, 224)
    return [draw_image(draws, ShapesRecipe(size=size))[0] for size in sizes]


def calibration_images(model: Any, command: ExportCommand) -> list[np.ndarray]:
    """Calibration images (3, h, w) uint8 after the test pipeline, evenly spaced in a folder or the training data.

    Raises:
        InputError: Neither a folder nor training data is given.
    """
    dataset = dataset_of(model.cfg.get('train_dataloader') or {})
    if command.calibration is not None:
        files: list[Any] = list(list_images(command.calibration))
    elif dataset:
        built = DATASETS.build({**dataset, 'pipeline': [], 'test_mode': True})
        files = [built.get_data_info(index)['img_path'] for index in range(len(built))]
    else:
        raise InputError(
            '--precision int8 is calibrated on training images, which a checkpoint does not specify: pass its training '
            'config, or a folder of images with --calibration.'
        )
    chosen = np.linspace(0, len(files) - 1, min(CALIBRATION_IMAGES, len(files))).round().astype(int)
    return [prepare_image(model, files[index])['inputs'][0].numpy() for index in chosen]


def evaluation_config(model: Any, data: str) -> Config:
    """Config for the evaluation, with the test set of a dataset folder or of another config."""
    cfg = model.cfg
    if Path(data).is_dir():
        cfg = Config(cfg.to_dict())
        cfg.merge_from_dict(
            {key: value for key, value in data_options(cfg, data).items() if key.startswith('test_')}
        )
    else:
        cfg = load_config(data)
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise InputError(
            f'--data {data}: the config needs a test_dataloader and a test_evaluator to measure AP.'
        )
    dataset: Any = dataset_of(cfg.test_dataloader)
    if 'ann_file' in dataset and 'classes' not in dataset.get('metainfo', {}):
        dataset.metainfo = {**dataset.get('metainfo', {}), 'classes': model.dataset_meta['classes']}
    return cfg


@torch.no_grad()
def compare_ap(model: Any, runtime: Runtime, cfg: Config) -> APs:
    """Evaluate the detector and an exported file side by side on a config's test set."""
    loader = Runner.build_dataloader(
        {**cfg.test_dataloader, 'batch_size': 1, 'num_workers': 0, 'persistent_workers': False}, seed=0
    )
    evaluators = [Evaluator(cfg.test_evaluator) for _ in range(2)]
    for evaluator in evaluators:
        evaluator.dataset_meta = loader.dataset.metainfo
    for batch in track(loader, 'evaluating PyTorch and the export', len(loader)):
        samples = detect(runtime, batch['inputs'], [sample.new() for sample in batch['data_samples']])
        for evaluator, results in zip(evaluators, (model.test_step(batch), samples), strict=True):
            evaluator.process(data_samples=results, data_batch=batch)
    return APs(*(evaluator.evaluate(len(loader.dataset)) for evaluator in evaluators))


def check_ap(aps: APs, command: ExportCommand) -> None:
    """Raise InputError if any metric differs by more than the bound."""
    bound = command.max_ap_difference
    bound = AP_BOUNDS[command.options.precision] if bound is None else bound
    for name, value in aps.pytorch.items():
        if abs(value - aps.exported[name]) > bound:
            raise InputError(
                f'the export to {command.to} has {name} {aps.exported[name]:.4f}, PyTorch {value:.4f}: they differ by '
                f'more than {bound:g}. Nothing was written.'
            )
