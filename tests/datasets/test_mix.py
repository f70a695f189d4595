import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from torch.utils.data import DataLoader

from ddetr.datasets import DefaultSampler, MultiImageMixDataset, ResumableBatchSampler, SeededDataset
from ddetr.registry import TRANSFORMS
from ddetr.utils.errors import ConfigError

LOAD = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
MIX = [
    {'type': 'Mosaic', 'img_scale': (40, 40)},
    {'type': 'RandomAffine', 'border': (-20, -20)},
    {'type': 'MixUp', 'img_scale': (40, 40)},
    {'type': 'PhotoMetricDistortion'},
    {'type': 'PackDetInputs'},
]


@TRANSFORMS.register_module()
class RejectAll(BaseTransform):
    def transform(self, results):
        return None


def _mixed(tiny_coco, pipeline=MIX, **options):
    tiny_coco.write()
    inner = {'type': 'CocoDataset', **tiny_coco.config(pipeline=LOAD)}
    return MultiImageMixDataset(inner, pipeline, **options)


def _items(dataset, epoch=0, workers=0, batch_size=1):
    sampler = DefaultSampler(dataset, shuffle=True, seed=3)
    sampler.set_epoch(epoch)
    batches = ResumableBatchSampler(sampler, batch_size)
    loader = DataLoader(SeededDataset(dataset), batch_sampler=batches, num_workers=workers, collate_fn=list)
    return {item['data_samples'].img_id: item for batch in loader for item in batch}


def _same(one, other):
    return torch.equal(one['inputs'], other['inputs']) and torch.equal(
        one['data_samples'].gt_instances.bboxes, other['data_samples'].gt_instances.bboxes
    )


def test_mixed_samples_depend_on_seed_epoch_and_sample_only(tiny_coco):
    dataset = _mixed(tiny_coco)
    expected = _items(dataset)
    assert expected.keys() == {10, 11, 12}
    np.random.seed(7)
    for options in ({}, {'workers': 2}, {'workers': 1, 'batch_size': 2}):
        items = _items(dataset, **options)
        assert all(_same(items[i], expected[i]) for i in expected)
    assert not any(_same(item, expected[i]) for i, item in _items(dataset, epoch=1).items())


def test_items_have_the_mixed_size_and_no_annotations_of_their_own(tiny_coco):
    item = _items(_mixed(tiny_coco))[10]
    assert item['inputs'].shape == (3, 40, 40)
    assert item['data_samples'].img_shape == (40, 40)
    assert 'annotations' not in item['data_samples']


def test_inner_dataset_is_not_changed_by_mixing(tiny_coco):
    dataset = _mixed(tiny_coco)
    before = dataset.dataset[0]
    _items(dataset)
    np.testing.assert_array_equal(dataset.dataset[0]['img'], before['img'])
    np.testing.assert_array_equal(dataset.dataset[0]['gt_bboxes'], before['gt_bboxes'])
    assert len(dataset) == 3
    assert dataset.metainfo['classes'] == ('cat', 'dog')
    assert dataset.get_data_info(2)['width'] == 60
    assert sorted(dataset.get_cat_ids(0)) == [0, 1]


def test_transforms_are_skipped_from_the_given_epoch(tiny_coco):
    dataset = _mixed(tiny_coco, skip_type_keys=['Mosaic', 'RandomAffine', 'MixUp'], skip_from_epoch=2)
    assert {tuple(i['inputs'].shape) for i in _items(dataset, epoch=1).values()} == {(3, 40, 40)}
    for workers in (0, 2):
        items = _items(dataset, epoch=2, workers=workers)
        assert items[10]['inputs'].shape == (3, 80, 100)
        assert items[12]['inputs'].shape == (3, 90, 60)


def test_invalid_mixes_raise(tiny_coco):
    with pytest.raises(ConfigError, match="skip_type_keys names 'Mosiac'"):
        _mixed(tiny_coco, skip_type_keys=['Mosiac'])
    with pytest.raises(ConfigError, match='RejectAll rejected image id 10 15 times'):
        _mixed(tiny_coco, [{'type': 'RejectAll'}])[0]
