"""Where padding lies in a batch and on its feature maps."""

import torch

from ddetr.models.layers.positional_encoding import pad_mask_of, pad_mask_on
from ddetr.structures import DetDataSample


def test_mask_of_a_batch_and_of_its_feature_map():
    sizes = [(5, 8), (8, 3)]
    samples = [DetDataSample(metainfo={'img_shape': s, 'batch_input_shape': (8, 8)}) for s in sizes]
    mask = pad_mask_of(samples, torch.device('cpu'))
    assert mask.shape == (2, 8, 8)
    for image, (height, width) in zip(mask.tolist(), sizes, strict=True):
        for y, row in enumerate(image):
            assert row == [y >= height or x >= width for x in range(8)]

    on_map = pad_mask_on(torch.zeros(2, 16, 4, 2), mask)  # strides of 2 and 4: rows 0 2 4 6, columns 0 4
    assert on_map.tolist() == [
        [[False, False], [False, False], [False, False], [True, True]],
        [[False, True], [False, True], [False, True], [False, True]],
    ]
