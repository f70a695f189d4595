"""Batches of similar sizes: every image once, as many batches on each rank, and what the draws do to sizes."""

import copy
import pickle
from collections import Counter

import numpy as np
import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner

from ddetr.datasets.samplers import SampleIndex
from ddetr.datasets.similar_size import SimilarSizeBatchSampler
from ddetr.datasets.transforms import RandomChoice, RandomChoiceResize, RandomCrop
from ddetr.engine.config import load_config
from tests.conftest import ROOT


class Sizes:
    """A dataset of which only the images' sizes matter."""

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.sizes = [tuple(int(n) for n in rng.integers(300, 641, 2)) for _ in range(count)]

    def __len__(self):
        return len(self.sizes)

    def get_data_info(self, index):
        return dict(zip(('width', 'height'), self.sizes[index], strict=True))


def sampler_of(dataset, epoch=0, rank=0, world_size=1, seed=5):
    sampler = DefaultSampler(dataset, shuffle=True, seed=seed)
    sampler.rank, sampler.world_size = rank, world_size
    sampler.num_samples = -(-len(dataset) // world_size)
    sampler.total_size = sampler.num_samples * world_size
    sampler.set_epoch(epoch)
    return sampler


def batches_of(count, batch_size=4, drop_last=False, window=5, **sampler):
    return list(SimilarSizeBatchSampler(sampler_of(Sizes(count), **sampler), batch_size, drop_last, window))


@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('count', [100, 101, 63, 3])
def test_every_image_comes_once(count, drop_last):
    batches = batches_of(count, drop_last=drop_last)
    indices = [index for batch in batches for index in batch]
    kept = count // 4 * 4 if drop_last else count
    assert len(batches) == -(-kept // 4)
    assert len(set(indices)) == len(indices) == kept
    assert sum(len(batch) < 4 for batch in batches) == (kept % 4 > 0)


def test_images_left_out_are_the_samplers_last_and_not_the_widest():
    order = list(sampler_of(Sizes(103)))
    kept = {index for batch in batches_of(103, drop_last=True) for index in batch}
    assert set(order) - kept == set(order[100:])


def test_batches_group_similar_aspect_ratios_within_a_window():
    dataset = Sizes(80)
    order = list(sampler_of(dataset))
    batches = batches_of(80)
    for start in range(0, 20, 5):  # batches of a window
        images = order[4 * start : 4 * start + 20]
        images.sort(key=lambda i: dataset.sizes[i][0] / dataset.sizes[i][1])
        expected = {frozenset(images[i : i + 4]) for i in range(0, 20, 4)}
        assert {frozenset(batch) for batch in batches[start : start + 5]} == expected


def test_epochs_and_seeds_differ_and_repeat():
    first = batches_of(80)
    assert batches_of(80) == first
    assert batches_of(80, epoch=1) != first
    assert batches_of(80, seed=6) != first
    ratios = [[Sizes(80).sizes[i][0] / Sizes(80).sizes[i][1] for i in batch] for batch in first[:5]]
    assert sorted(ratios) != ratios  # the narrowest batch does not always come first


def seeds(batches):
    assert all(len({index.batch_seed for index in batch}) == 1 for batch in batches)
    return [batch[0].batch_seed for batch in batches]


def test_ranks_have_as_many_batches_with_the_same_draws():
    ranks = [batches_of(101, rank=rank, world_size=3) for rank in range(3)]
    assert len({len(batches) for batches in ranks}) == 1
    assert seeds(ranks[0]) == seeds(ranks[1]) == seeds(ranks[2])
    assert len(set(seeds(ranks[0]))) == len(ranks[0])
    assert set(seeds(batches_of(101, epoch=1))).isdisjoint(seeds(batches_of(101)))
    # all images, of which one comes twice so that every rank has as many
    assert Counter(Counter(i for batches in ranks for batch in batches for i in batch).values()) == {
        1: 100,
        2: 1,
    }


def test_endless_samplers_do_not_repeat_their_draws():
    batches = iter(SimilarSizeBatchSampler(InfiniteSampler(Sizes(30), seed=1), 4))
    assert len(set(seeds([next(batches) for _ in range(500)]))) == 500


def test_index_keeps_its_seed_when_sent_to_a_worker():
    index = pickle.loads(pickle.dumps(SampleIndex(7, epoch=3, draw_seed=5, batch_seed=99)))
    assert (index, index.epoch, index.draw_seed, index.batch_seed) == (7, 3, 5, 99)
    assert copy.deepcopy(index).batch_seed == 99


AUGMENT = RandomChoice(
    [
        [RandomChoiceResize([(s, 1333) for s in range(48, 81, 4)], resize_type='Resize', keep_ratio=True)],
        [RandomCrop((20, 40), 'absolute_range', allow_negative_crop=True),
         RandomChoiceResize([(s, 1333) for s in range(48, 81, 4)], resize_type='Resize', keep_ratio=True)],
    ]
)  # fmt: skip


def augmented(height, width, **more):
    return AUGMENT({'img': np.zeros((height, width, 3), np.uint8), **more})


def size_of(results):
    return results['img'].shape[:2]


def test_same_seed_gives_same_size_regardless_of_earlier_draws():
    drawn = set()
    for seed in range(40):
        sizes = set()
        for noise in range(3):
            np.random.seed(noise)
            sizes.add(size_of(augmented(60, 90, batch_seed=seed)))
            assert np.random.rand() == np.random.RandomState(noise).rand()  # left as it was
        assert len(sizes) == 1
        drawn |= sizes
    assert len(drawn) > 20


def test_consecutive_choices_of_a_seed_are_independent():
    """Each branch sees all scales, as often as without seeds: the draws inside have seeds of their own."""
    count = Counter()
    for seed in np.random.default_rng(3).integers(2**32, size=3000):
        results = augmented(60, 60, batch_seed=int(seed))
        count[
            'crop' if results['img_shape'] != (min(size_of(results)),) * 2 else 'whole', results['scale_idx']
        ] += 1
    # cropped squares are square too now and then: 1 in 21
    expected = {'whole': 1500 / 9 * (1 + 1 / 21), 'crop': 1500 / 9 * (1 - 1 / 21)}
    assert len(count) == 18
    for (branch, _), found in count.items():
        assert abs(found - expected[branch]) < 4.5 * expected[branch] ** 0.5


def padded_share(coco_root, batch_sampler):
    """Share of padding in the batches of 4 that a config's loader gives, over three epochs of real images."""
    cfg = load_config(ROOT / 'configs/deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    loader = cfg.train_dataloader
    loader.update(batch_size=4, num_workers=0, persistent_workers=False, batch_sampler=batch_sampler)
    loader.drop_last = batch_sampler is None
    loader.dataset.data_root = str(coco_root)
    loader.dataset.indices = 48
    built = Runner.build_dataloader(loader, seed=0)
    used = total = 0
    for batch in built:
        sizes = np.array([image.shape[-2:] for image in batch['inputs']])
        used += sizes.prod(1).sum()
        total += len(sizes) * sizes.max(0).prod()
    return 1 - used / total


def test_little_of_a_batch_is_padding(coco_root):
    assert padded_share(coco_root, None) > 0.25
    assert padded_share(coco_root, {'type': 'SimilarSizeBatchSampler'}) < 0.07
