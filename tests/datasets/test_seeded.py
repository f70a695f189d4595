import random

import numpy as np
import torch
from torch.utils.data import DataLoader

from ddetr.datasets import DefaultSampler, ResumableBatchSampler, SeededDataset


class Draws:
    """A dataset whose items are what its transforms draw, from each of the three generators."""

    metainfo = {'classes': ('cat',)}
    pipeline = None

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def _batches(epoch, batch_size=2, order=0):
    sampler = DefaultSampler(Draws(), seed=order)
    sampler.set_epoch(epoch)
    return ResumableBatchSampler(sampler, batch_size)


def _drawn(workers, *batches):
    loader = DataLoader(
        SeededDataset(Draws()), batch_sampler=_batches(*batches), num_workers=workers, collate_fn=list
    )
    return {item[0]: item[1:] for batch in loader for item in batch}


def test_draws_depend_on_epoch_and_sample_only():
    expected = _drawn(0, 0)
    assert len({value for item in expected.values() for value in item}) == 21
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    for other in (_drawn(0, 0), _drawn(2, 0), _drawn(3, 0, 3), _drawn(0, 0, 2, 4)):
        assert other == expected
    assert not set(_drawn(0, 1).values()) & set(expected.values())


def test_draws_leave_the_processes_generators_alone():
    def following():
        return random.random(), np.random.rand(), torch.rand(()).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = following()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    assert len({SeededDataset(Draws())[index] for index in next(iter(_batches(0)))}) == 2
    assert following() == expected


def test_attributes_are_the_datasets_own():
    inner = Draws()
    dataset = SeededDataset(inner)
    assert dataset.metainfo is inner.metainfo
    assert not hasattr(dataset, 'get_data_info')
    dataset.pipeline = 'another'  # as hooks do that switch augmentations off
    assert inner.pipeline == 'another'
    assert dataset[3][0] == 3
