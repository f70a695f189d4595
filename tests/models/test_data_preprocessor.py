import numpy as np
import pytest
import torch

from ddetr.models.data_preprocessor import DetDataPreprocessor
from ddetr.structures import DetDataSample

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of R, G, B


def _batch(*sizes):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (3, *size), dtype=np.uint8) for size in sizes]
    samples = [DetDataSample(metainfo={'img_shape': size}) for size in sizes]
    return images, {'inputs': [torch.from_numpy(image) for image in images], 'data_samples': samples}


def test_normalises_in_rgb_and_pads_at_the_right_and_bottom():
    images, batch = _batch((30, 50), (45, 20))
    preprocessor = DetDataPreprocessor(mean=MEAN, std=STD, bgr_to_rgb=True, pad_size_divisor=32)

    result = preprocessor(batch, training=True)

    assert result['inputs'].shape == (2, 3, 64, 64)
    assert result['inputs'].dtype == torch.float32
    for image, padded in zip(images, result['inputs'].numpy(), strict=True):
        height, width = image.shape[1:]
        for channel in range(3):  # R, G, B in the result; B, G, R in the image
            expected = (image[2 - channel].astype(float) - MEAN[channel]) / STD[channel]
            np.testing.assert_allclose(padded[channel, :height, :width], expected, atol=1e-5)
        assert (padded[:, height:] == 0).all()
        assert (padded[:, :, width:] == 0).all()


def test_samples_learn_the_sizes():
    _, batch = _batch((30, 50), (45, 20))

    samples = DetDataPreprocessor(mean=MEAN, std=STD, pad_size_divisor=16)(batch)['data_samples']

    assert [sample.batch_input_shape for sample in samples] == [(48, 64), (48, 64)]
    assert [sample.pad_shape for sample in samples] == [(32, 64), (48, 32)]
    assert [sample.img_shape for sample in samples] == [(30, 50), (45, 20)]


def test_images_without_samples_pass_unnormalised_if_asked():
    images, batch = _batch((8, 8))

    result = DetDataPreprocessor(pad_value=7, pad_size_divisor=16)({'inputs': batch['inputs']})

    assert result['data_samples'] is None
    expected = np.full((3, 16, 16), 7.0)
    expected[:, :8, :8] = images[0]
    np.testing.assert_array_equal(result['inputs'][0].numpy(), expected)


def test_fixed_size_padding_is_for_training_only():
    augments = [{'type': 'BatchFixedSizePad', 'size': (64, 96)}]
    preprocessor = DetDataPreprocessor(mean=MEAN, std=STD, batch_augments=augments)
    _, batch = _batch((30, 50), (45, 20))

    in_training = preprocessor(batch, training=True)
    assert in_training['inputs'].shape == (2, 3, 64, 96)
    assert in_training['data_samples'][0].batch_input_shape == (64, 96)
    in_testing = preprocessor(batch, training=False)
    assert in_testing['inputs'].shape == (2, 3, 45, 50)
    torch.testing.assert_close(in_training['inputs'][:, :, :45, :50], in_testing['inputs'])
    assert (in_training['inputs'][:, :, 45:] == 0).all()


def test_batch_larger_than_the_fixed_size_raises():
    preprocessor = DetDataPreprocessor(batch_augments=[{'type': 'BatchFixedSizePad', 'size': (32, 96)}])
    _, batch = _batch((33, 50))

    with pytest.raises(ValueError, match=r'33 x 50 pixels.*\(32, 96\)'):
        preprocessor(batch, training=True)
