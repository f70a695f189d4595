from .errors import CheckpointError, ConfigError, InputError, TrainingInterrupted

__all__ = ['CheckpointError', 'ConfigError', 'InputError', 'TrainingInterrupted']
