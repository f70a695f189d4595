"""Disable strong augmentation in the last epochs."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ddetr.registry import HOOKS
from ddetr.utils.errors import ConfigError


@HOOKS.register_module()
class YOLOXModeSwitchHook(Hook):
    """Train the last epochs without Mosaic, MixUp and similar transforms (Ge et al., "YOLOX", 2021).

    The training dataset must be a `MultiImageMixDataset`, which decides by the epoch of each sample. Workers therefore
    need no message, and a resumed run switches at the same point.

    Args:
        num_last_epochs: Number of epochs without these transforms; a float below 1 is a fraction of `max_epochs`.
        skip_type_keys: Types of the transforms to disable.

    Raises:
        ConfigError: Training is iteration-based, or its dataset does not support skipping transforms.
    """

    def __init__(
        self,
        num_last_epochs: float = 15,
        skip_type_keys: Sequence[str] = ('Mosaic', 'RandomAffine', 'MixUp'),
    ) -> None:
        self.num_last_epochs, self.skip_type_keys = num_last_epochs, tuple(skip_type_keys)

    def before_train(self, runner: Runner) -> None:
        """Set the first epoch without the transforms in the dataset."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ConfigError(
                'YOLOXModeSwitchHook counts epochs, but train_cfg is iteration-based: use EpochBasedTrainLoop, or '
                'set skip_from_epoch of MultiImageMixDataset.'
            )
        last, epochs = self.num_last_epochs, runner.max_epochs
        last = round(last * epochs) if 0 < last < 1 else int(last)
        dataset = runner.train_dataloader.dataset
        if not hasattr(dataset, 'skip'):
            raise ConfigError(
                'YOLOXModeSwitchHook needs a MultiImageMixDataset in train_dataloader: add one, or remove the hook '
                'from custom_hooks.'
            )
        dataset.skip(self.skip_type_keys, max(epochs - last, 0))
