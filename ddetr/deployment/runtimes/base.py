"""Base class of the runtimes of exported files."""

from abc import ABC, abstractmethod

import numpy as np

from ddetr.deployment.info import ExportInfo
from ddetr.utils.errors import InputError, first_line

from .arrays import DetectionArrays, check_arrays, lengthen


class Runtime(ABC):
    """A detector in some runtime; a subclass opens the file and runs one batch.

    Attributes:
        path: Path of the exported file.
        info: Metadata of the file.
    """

    path: str
    info: ExportInfo

    @abstractmethod
    def _run(self, images: np.ndarray, sizes_hw: np.ndarray) -> list[np.ndarray]:
        """Run one batch of a size that the file supports; return the outputs in the order of `OUTPUT_NAMES`."""

    def __call__(self, images: np.ndarray, sizes_hw: np.ndarray) -> DetectionArrays:
        """Detect in a batch of any size, which is split if the batch size of the file is fixed.

        Args:
            images: Padded images (B, 3, H, W), float32 or uint8 depending on `info.preprocessing`.
            sizes_hw: Sizes (B, 2) int64 without padding.

        Raises:
            InputError: The arrays do not fit the file, or the runtime fails at this size.
        """
        check_arrays(self.info, self.path, images, sizes_hw)
        step = self.info.batch or len(images)
        found = []
        for start in range(0, len(images), step):
            piece, sizes = images[start : start + step], sizes_hw[start : start + step]
            short = step - len(piece)
            if short:  # fill up the last batch with its last image
                piece = np.concatenate([piece, np.repeat(piece[-1:], short, 0)])
                sizes = np.concatenate([sizes, np.repeat(sizes[-1:], short, 0)])
            try:
                outputs = self._run(piece, sizes)
            except Exception as error:  # each runtime has its own exceptions
                raise InputError(
                    f'{self.path} fails on images of {piece.shape[2]} x {piece.shape[3]} pixels (h x w): '
                    f'{first_line(error)} If other sizes work, this size is too small or too large for the model.'
                ) from error
            if {len(output) for output in outputs} != {step}:
                raise InputError(
                    f'{self.path} answers for {len(outputs[0])} images when given {step}: its batch size is not '
                    'what its metadata says. Export it again.'
                )
            found.append([np.asarray(output)[: step - short] for output in outputs])
        longest = max(piece[1].shape[1] for piece in found)
        fields = zip(*found, strict=True)
        return DetectionArrays(*(np.concatenate([lengthen(a, longest) for a in field]) for field in fields))
