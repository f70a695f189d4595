from .errors import CheckpointError, ConfigError, InputError

__all__ = ['CheckpointError', 'ConfigError', 'InputError']
