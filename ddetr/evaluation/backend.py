"""Backend of the COCO evaluation: faster-coco-eval if installed, otherwise pycocotools; results are identical."""

from typing import Any

try:
    from faster_coco_eval import COCO, COCOeval_faster
except ImportError:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    COCOeval_faster = None

__all__ = ['COCO', 'new_evaluation']


def new_evaluation(truth: Any, found: Any) -> Any:
    """Create a `COCOeval` for boxes that prints its table to stdout. `truth` and `found` are `COCO` indices."""
    if COCOeval_faster is None:
        return COCOeval(truth, found, 'bbox')
    return COCOeval_faster(truth, found, 'bbox', print_function=print)
