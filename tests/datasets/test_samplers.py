import itertools
import pickle

import pytest
from mmengine import dataset as engine
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner

from ddetr import datasets
from ddetr.datasets import AspectRatioBatchSampler, ResumableBatchSampler


class Sizes:
    """A dataset of which only the images' sizes matter."""

    def __init__(self, wide, high):
        self.sizes = [(4, 3)] * wide + [(3, 4)] * high

    def __len__(self):
        return len(self.sizes)

    def get_data_info(self, index):
        return dict(zip(('width', 'height'), self.sizes[index], strict=True))


@pytest.mark.parametrize(('wide', 'high', 'batch_size'), [(40, 25, 4), (7, 0, 2), (3, 3, 4), (1, 1, 1)])
@pytest.mark.parametrize('drop_last', [False, True])
def test_only_remainders_mix_orientations(wide, high, batch_size, drop_last):
    sampler = AspectRatioBatchSampler(
        DefaultSampler(Sizes(wide, high), shuffle=True, seed=1), batch_size, drop_last
    )

    batches = list(sampler)

    assert len(batches) == len(sampler)
    indices = [index for batch in batches for index in batch]
    assert len(set(indices)) == len(indices)
    if not drop_last:
        assert sorted(indices) == list(range(wide + high))
    assert all(len(batch) == batch_size for batch in batches[: len(batches) if drop_last else -1])
    mixed = [len({index < wide for index in batch}) == 2 for batch in batches]
    assert sum(mixed) <= 1


def test_a_config_builds_it_on_real_images(coco_root):
    loader = Runner.build_dataloader(
        {
            'batch_size': 4,
            'num_workers': 2,
            'sampler': {'type': 'DefaultSampler', 'shuffle': True},
            'batch_sampler': {'type': 'AspectRatioBatchSampler'},
            'dataset': {
                'type': 'CocoDataset',
                'data_root': str(coco_root),
                'ann_file': 'annotations/instances_train2017.json',
                'data_prefix': {'img': 'train2017/'},
                'pipeline': [
                    {'type': 'LoadImageFromFile'},
                    {'type': 'LoadAnnotations', 'with_bbox': True},
                    {'type': 'RandomFlip', 'prob': 0.5},
                    {'type': 'RandomChoiceResize', 'scales': [(96, 160), (128, 160)], 'keep_ratio': True},
                    {'type': 'PackDetInputs'},
                ],
            },
        }
    )
    mixed, ids = 0, []
    for batch in loader:
        mixed += len({image.shape[2] > image.shape[1] for image in batch['inputs']}) == 2
        ids += [sample.img_id for sample in batch['data_samples']]

    assert mixed <= 1
    assert len(ids) == len(set(ids)) == 128


def _of_process(kind, rank, processes, size=11, **options):
    """A sampler as one of several processes builds it."""
    sampler = getattr(datasets, kind)(range(size), seed=3, **options)
    sampler.rank, sampler.world_size = rank, processes
    if kind == 'DefaultSampler':
        sampler.num_samples = -(-size // processes)
        sampler.total_size = sampler.num_samples * processes
    return sampler


@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize('rank', [0, 1])
def test_order_equals_mmengine(rank, shuffle):
    for kind, count in (('DefaultSampler', 6), ('InfiniteSampler', 30)):
        theirs = getattr(engine, kind)(range(11), seed=3, shuffle=shuffle)
        theirs.rank, theirs.world_size, theirs.total_size = rank, 2, 12
        ours = _of_process(kind, rank, 2, shuffle=shuffle)
        for sampler in (theirs, ours):
            sampler.set_epoch(4)
        expected = list(itertools.islice(theirs, count))
        assert list(itertools.islice(ours, count)) == expected, kind
        assert len(ours) == len(_of_process(kind, 0, 2))


@pytest.mark.parametrize('kind', ['DefaultSampler', 'InfiniteSampler'])
@pytest.mark.parametrize('start', [0, 4, 5])
def test_other_numbers_of_processes_resume_at_the_same_position(kind, start):
    whole = list(itertools.islice(_of_process(kind, 0, 1, size=12), 12))
    parts = []
    for rank in range(3):
        sampler = _of_process(kind, rank, 3, size=12)
        sampler.start = start
        parts.append(list(itertools.islice(sampler, (12 - start + 2 - rank) // 3)))
    together = [index for group in itertools.zip_longest(*parts) for index in group if index is not None]
    assert together == whole[start:]


def test_an_infinite_sampler_counts_its_passes():
    sampler = _of_process('InfiniteSampler', 1, 2, size=3)
    assert [index.epoch for index in itertools.islice(sampler, 5)] == [0, 1, 1, 2, 3]  # samples 1, 3, 5, 7, 9


@pytest.mark.parametrize('batch_sampler', [None, {'type': 'AspectRatioBatchSampler'}])
def test_skipping_batches_does_not_change_the_rest(batch_sampler):
    def batches(skip, epoch=1, seed=5):
        sampler = datasets.DefaultSampler(Sizes(8, 5), seed=2)
        sampler.set_epoch(epoch)
        batches = ResumableBatchSampler(sampler, 3, batch_sampler)
        batches.seed, batches.skip = seed, skip
        assert len(batches) == 5
        return [[(int(index), index.draw_seed) for index in batch] for batch in batches]

    assert batches(2) == batches(0)[2:]
    assert batches(5) == []
    drawn = {dict(itertools.chain(*batches(0, epoch, seed)))[7] for epoch in (0, 1) for seed in (5, 6)}
    assert len(drawn) == 4  # image 7 has another seed in another epoch or run


def test_a_batch_that_is_not_full_is_dropped_if_asked():
    for batch_sampler in (None, {'type': 'AspectRatioBatchSampler'}):
        for drop_last, count in ((None, 3), (False, 3), (True, 2)):
            sampler = datasets.DefaultSampler(Sizes(5, 0))
            batches = ResumableBatchSampler(sampler, 2, batch_sampler, drop_last)
            assert len(batches) == len(list(batches)) == count


def test_seeds_reach_workers():
    index = next(iter(ResumableBatchSampler(datasets.DefaultSampler(range(4)), 4)))[2]
    copy = pickle.loads(pickle.dumps(index))
    assert (copy, copy.epoch, copy.draw_seed) == (index, 0, index.draw_seed)
    assert index.draw_seed is not None
