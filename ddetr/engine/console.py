"""Filter the terminal output of a run to progress and results. The log file contains everything."""

import logging

# Starts of messages by which mmengine tells of its workings: the environment, the config and the hooks in full,
# lines for every parameter with a learning rate of its own, classes of its own that it means to retire.
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
    """Make a handler drop the messages above; errors always pass."""
    handler.addFilter(lambda record: record.levelno >= logging.ERROR or not _is_detail(record.getMessage()))


def _is_detail(message: str) -> bool:
    return message.startswith(DETAILS) or message.endswith(FROZEN)
