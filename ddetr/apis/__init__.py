from ddetr.engine.config import load_config

from .data_check import check_data
from .inference import DetInferencer, Failure, Prediction, inference_detector, init_detector, prepare_image
from .prediction import PredictOptions, predict_files
from .prepared import prepare_for_inference
from .results import to_supervision
from .runs import EvalOptions, TrainOptions, evaluate_detector, train_detector
from .sources import list_images
from .tiling import Tiling

__all__ = [
    'DetInferencer',
    'EvalOptions',
    'Failure',
    'PredictOptions',
    'Prediction',
    'Tiling',
    'TrainOptions',
    'check_data',
    'evaluate_detector',
    'inference_detector',
    'init_detector',
    'list_images',
    'load_config',
    'predict_files',
    'prepare_for_inference',
    'prepare_image',
    'to_supervision',
    'train_detector',
]
