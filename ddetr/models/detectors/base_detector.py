"""What every detector is to mmengine's Runner."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from mmengine.model import BaseModel
from torch import Tensor

from ddetr.structures import DetDataSample
from ddetr.weights import WeightFamily

Samples = list[DetDataSample]


class BaseDetector(BaseModel, ABC):
    """A model that turns a padded batch of images into losses or detections.

    The only thing it does is to send mmengine's three modes to three methods; a subclass writes its whole flow
    in them.
    """

    weight_family: ClassVar[WeightFamily | None] = None

    def forward(self, inputs: Tensor, data_samples: Samples | None = None, mode: str = 'tensor') -> Any:
        """Run one batch.

        Args:
            inputs: (B, 3, H, W) normalised and padded by the data preprocessor.
            data_samples: one a image; `loss` reads their ground truth, all modes their `img_shape`.
            mode: `loss` -> dict of scalar losses, `predict` -> the samples with `pred_instances`,
                `tensor` -> the raw predictions.

        Raises:
            ValueError: any other mode, or no samples.
        """
        if mode not in ('loss', 'predict', 'tensor'):
            raise ValueError(f'mode={mode!r} is none of "loss", "predict", "tensor"')
        if data_samples is None:
            raise ValueError(
                "data_samples is None: detectors need each image's img_shape to know where its padding begins"
            )
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return self.tensor(inputs, data_samples)

    @abstractmethod
    def loss(self, images: Tensor, samples: Samples) -> dict[str, Tensor]:
        """(B, 3, H, W) and ground truth -> named scalar losses; those with `loss` in the name are summed."""

    @abstractmethod
    def predict(self, images: Tensor, samples: Samples) -> Samples:
        """(B, 3, H, W) -> the samples, each with `pred_instances` in pixels of its original image."""

    @abstractmethod
    def tensor(self, images: Tensor, samples: Samples) -> Any:
        """(B, 3, H, W) -> the raw predictions before any loss or selection."""
