"""Where padding lies in a batch and on its feature maps."""

import torch

from ddetr.models.data_preprocessor import DetDataPreprocessor
from ddetr.models.detectors.base_detector import BaseDetector
from ddetr.models.layers.positional_encoding import pad_mask_on
from ddetr.structures import DetDataSample


def test_mask_of_a_batch_and_of_its_feature_map():
    sizes = [(5, 8), (8, 3)]
    batch = DetDataPreprocessor(with_pad_mask=True)(
        {'inputs': [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]}
    )
    mask = batch['pad_mask']
    assert mask.shape == (2, 8, 8)
    for image, (height, width) in zip(mask.tolist(), sizes, strict=True):
        for y, row in enumerate(image):
            assert row == [y >= height or x >= width for x in range(8)]

    on_map = pad_mask_on(torch.zeros(2, 16, 4, 2), mask)  # strides of 2 and 4: rows 0 2 4 6, columns 0 4
    assert on_map.tolist() == [
        [[False, False], [False, False], [False, False], [True, True]],
        [[False, True], [False, True], [False, True], [False, True]],
    ]


class Echo(BaseDetector):
    """Gives back the batch that it was handed."""

    def loss(self, batch, samples):
        return batch

    def predict(self, batch, samples):
        return batch

    def tensor(self, batch):
        return batch


def test_the_mask_travels_with_the_images():
    sizes = [(5, 8), (8, 3)]
    data = {
        'inputs': [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes],
        'data_samples': [DetDataSample(metainfo={'img_shape': size}) for size in sizes],
    }
    model = Echo(data_preprocessor={'type': 'DetDataPreprocessor', 'pad_size_divisor': 16})
    batch = model.data_preprocessor(data)
    mask = batch['pad_mask']
    assert model(**batch).pad_mask is mask
    assert model(**batch).sizes_hw == sizes
    from_samples = model(batch['inputs'], batch['data_samples'], mode='predict')
    assert torch.equal(from_samples.pad_mask, mask)
    alone = model(batch['inputs'])
    assert not alone.pad_mask.any()
    assert alone.sizes_hw == [(16, 16), (16, 16)]
