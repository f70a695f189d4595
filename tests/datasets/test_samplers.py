import pytest
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner

from ddetr.datasets import AspectRatioBatchSampler


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
def test_only_what_is_left_over_mixes_shapes(wide, high, batch_size, drop_last):
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
