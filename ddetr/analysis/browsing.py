"""Pictures of augmented images with their boxes, as used for training."""

from collections.abc import Sequence
from pathlib import Path

from ddetr.analysis.examples import Example
from ddetr.visualization import DetLocalVisualizer
from ddetr.visualization.contact_sheet import ContactSheet


def write_pictures(
    examples: Sequence[Example], classes: Sequence[str], folder: Path, each: bool = False
) -> list[Path]:
    """Write contact sheets of images with their boxes and, with `each`, one picture per image; return the sheet paths.

    Pictures are named after the image, prefixed by a running number: `00_street.jpg`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sheet = ContactSheet(classes)
    for number, example in enumerate(examples):
        image = example.pixels[..., ::-1]
        truth = sheet.add(image, example.boxes_xyxy_px, example.labels)
        if each:
            picture = sheet.visualizer.draw_instances(image, truth)
            name = Path(str(example.sample.get('img_path', example.number))).stem
            DetLocalVisualizer.write(picture, folder / f'{number:02d}_{name}.jpg')
    return [folder / name for name in sheet.write(folder)]
