"""Register all engine components that configs can use, and replace mmengine's checkpoint reader.

The registries import this module on first use (`ddetr.registry`).
"""

from ddetr.weights import pretrained

from . import hooks, log_processor, loops, optim_wrapper, runner

__all__ = ['hooks', 'log_processor', 'loops', 'optim_wrapper', 'pretrained', 'runner']
