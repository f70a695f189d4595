"""Reduce the terminal output of a run to progress and results. The log file remains complete."""

import logging

# Prefixes of verbose mmengine messages: environment, full config, list of hooks, one line per parameter with its own
# learning rate, and deprecation warnings.
DETAILS = (
    '\n----',
    'Config:',
    'Hooks will be executed',
    'paramwise_options --',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'Distributed training is not used',
)
FROZEN = 'is skipped since its requires_grad=False'


def keep_details_out(handler: logging.Handler) -> None:
    """Make a handler drop these messages; errors always pass."""
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not _is_detail(record.getMessage()))


def _is_detail(message: str) -> bool:
    return message.startswith(DETAILS) or message.endswith(FROZEN)
