from ddetr.engine.config import load_config

from .data_check import check_data
from .inference import DetInferencer, inference_detector, init_detector, list_images, prepare_image
from .runs import EvalOptions, TrainOptions, evaluate_detector, train_detector

__all__ = [
    'DetInferencer',
    'EvalOptions',
    'TrainOptions',
    'check_data',
    'evaluate_detector',
    'inference_detector',
    'init_detector',
    'list_images',
    'load_config',
    'prepare_image',
    'train_detector',
]
