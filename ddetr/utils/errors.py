"""The errors that a person's input causes: the command lines print their sentence without a traceback."""


class InputError(ValueError):
    """What was given cannot be used. The message says which file, key or number, and what to do."""


class ConfigError(InputError):
    """A config file or an override of it."""


class CheckpointError(InputError):
    """A weight file or checkpoint."""
