"""Imports all of the engine that configs name, and with it our checkpoint reader in place of mmengine's.

The registries import it at first use (`ddetr.registry`).
"""

from ddetr.weights import pretrained

from . import hooks, log_processor, loops, optim_wrapper, runner

__all__ = ['hooks', 'log_processor', 'loops', 'optim_wrapper', 'pretrained', 'runner']
