"""Traced graphs have short expressions for dynamic sizes, however the backbone pads."""

import pytest
import torch
from mmengine.model import ImgDataPreprocessor
from torch import nn

from ddetr.deployment import ExportOptions
from ddetr.deployment.module import DeployedDetector
from ddetr.deployment.tracing import trace
from ddetr.structures import Detections


class Backbone(nn.Module):
    """A detector that only runs three strided convolutions, padded as in TensorFlow."""

    def __init__(self, layers):
        super().__init__()
        self.data_preprocessor = ImgDataPreprocessor(pad_size_divisor=16, pad_value=3)
        self.layers = layers

    def detect(self, batch):
        features = self.layers(batch.images).flatten(2)  # (B, 4, N)
        return Detections(features.mT, features[:, 0], features[:, 0].long())


def test_timms_padding_is_constant_if_sizes_are_multiples_of_the_strides():
    layers = pytest.importorskip('timm').layers
    convs = [layers.create_conv2d(3 if i == 0 else 4, 4, 3, stride=2, padding='same') for i in range(3)]
    module = DeployedDetector(Backbone(nn.Sequential(*convs))).eval()
    example = torch.rand(2, 3, 64, 96), torch.tensor([[64, 96]] * 2)
    program = trace(module, example, ExportOptions())
    pads = [node.args[1] for node in program.graph.nodes if 'pad' in str(node.target)]
    assert pads[1:] == [[0, 1, 0, 1]] * 3
    assert not any('ceil' in str(node.target) for node in program.graph.nodes)
    for height, width in ((32, 48), (128, 16)):
        images, sizes = torch.rand(1, 3, height, width), torch.tensor([[height, width]])
        for found, expected in zip(program.module()(images, sizes), module(images, sizes), strict=True):
            assert torch.equal(found, expected)


def test_other_sizes_are_padded_as_by_the_data_preprocessor():
    module = DeployedDetector(Backbone(nn.Conv2d(3, 4, 1))).eval()
    example = torch.rand(2, 3, 64, 96), torch.tensor([[64, 96]] * 2)
    program = trace(module, example, ExportOptions())
    image, sizes = torch.rand(1, 3, 50, 17), torch.tensor([[50, 17]])
    padded = nn.functional.pad(image, (0, 15, 0, 14), value=3.0)
    for found, expected in zip(program.module()(image, sizes), module(padded, sizes), strict=True):
        assert torch.equal(found, expected)
