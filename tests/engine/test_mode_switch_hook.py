import types

import pytest
from mmengine.runner import EpochBasedTrainLoop

from ddetr.engine.hooks import YOLOXModeSwitchHook
from ddetr.utils.errors import ConfigError


class _Mix:
    def skip(self, types, from_epoch):
        self.skipped = types, from_epoch


def _runner(dataset, max_epochs, loop=EpochBasedTrainLoop):
    return types.SimpleNamespace(
        train_loop=loop.__new__(loop),
        max_epochs=max_epochs,
        train_dataloader=types.SimpleNamespace(dataset=dataset),
    )


@pytest.mark.parametrize(
    ('last', 'epochs', 'first'), [(15, 40, 25), (0.25, 40, 30), (15, 10, 0), (0, 10, 10)]
)
def test_last_epochs_are_trained_without_mixing(last, epochs, first):
    dataset = _Mix()
    YOLOXModeSwitchHook(last, ['Mosaic']).before_train(_runner(dataset, epochs))
    assert dataset.skipped == (('Mosaic',), first)


def test_runs_that_cannot_switch_raise():
    with pytest.raises(ConfigError, match='needs a MultiImageMixDataset'):
        YOLOXModeSwitchHook().before_train(_runner([], 40))
    with pytest.raises(ConfigError, match='is iteration-based'):
        YOLOXModeSwitchHook().before_train(_runner(_Mix(), 40, type('ByIteration', (), {})))
