"""When a training stops, also if it was resumed in between."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub, MMLogger

from ddetr.engine.hooks import EarlyStoppingHook
from ddetr.utils import ConfigError


def runner_of(hub):
    loop = SimpleNamespace(stop_training=False)
    return SimpleNamespace(message_hub=hub, train_loop=loop, logger=MMLogger.get_current_instance())


def validations_until_stop(scores, resume_after=None, **options):
    """How many of these validations take place; after one of them a new process goes on."""
    runner = runner_of(MessageHub('early-stopping-1'))
    hook = EarlyStoppingHook('coco/bbox_mAP', **options)
    for count, score in enumerate(scores, 1):
        hook.after_val_epoch(runner, {'coco/bbox_mAP': score})
        if runner.train_loop.stop_training:
            return count
        if count == resume_after:
            saved = runner.message_hub.state_dict()
            runner = runner_of(MessageHub('early-stopping-2'))
            runner.message_hub.load_state_dict(saved)
            hook = EarlyStoppingHook('coco/bbox_mAP', **options)
    return None


SCORES = [0.1, 0.3, 0.2995, 0.3005, 0.31, 0.3, 0.29, 0.31, 0.5]


@pytest.mark.parametrize('resume_after', [None, 1, 3, 5, 7])
def test_it_stops_when_the_metric_has_not_improved(resume_after):
    # 0.31 is the last improvement by 0.001; the three validations after it are none
    assert validations_until_stop(SCORES, resume_after, patience=3) == 8
    assert validations_until_stop(SCORES, resume_after, patience=4) is None
    assert validations_until_stop(SCORES, resume_after, patience=3, min_delta=0.1) == 5


def test_misspelt_metric_raises_and_lists_the_known_ones():
    hook = EarlyStoppingHook('coco/mAP')
    with pytest.raises(
        ConfigError,
        match=r"monitor='coco/mAP' is not a validation metric\. Choose one of: coco/bbox_mAP, coco/bbox_AR",
    ):
        hook.after_val_epoch(runner_of(None), {'coco/bbox_mAP': 0.1, 'coco/bbox_AR': 0.2})
