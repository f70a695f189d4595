from .runs import EvalOptions, TrainOptions, evaluate_detector, train_detector

__all__ = ['EvalOptions', 'TrainOptions', 'evaluate_detector', 'train_detector']
