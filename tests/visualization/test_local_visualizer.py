import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from ddetr.structures import DetDataSample
from ddetr.visualization import DetLocalVisualizer

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def visualizer():
    visualizer = DetLocalVisualizer(alpha=1.0, line_width=4)
    visualizer.dataset_meta = {'classes': ('cat', 'dog'), 'palette': [RED, BLUE]}
    return visualizer


def _instances(*boxes_xyxy_px, **fields) -> InstanceData:
    return InstanceData(bboxes=np.array(boxes_xyxy_px, dtype=np.float32).reshape(-1, 4), **fields)


def _near(picture, x, y, color) -> bool:
    """Whether the color is found within 3 pixels."""
    window = picture[y - 3 : y + 4, x - 3 : x + 4].astype(int)
    return bool((np.abs(window - color).max(-1) < 40).any())


def test_boxes_are_drawn_where_they_are_in_their_classes_colors(visualizer):
    image = np.full((500, 600, 3), 128, dtype=np.uint8)
    instances = _instances([100, 200, 300, 400], [350, 100, 550, 450], labels=np.array([0, 1]))
    picture = visualizer.draw_instances(image, instances)
    assert picture.shape == image.shape
    for x, y in [(100, 300), (300, 300), (200, 400)]:
        assert _near(picture, x, y, RED), (x, y)
    for x, y in [(350, 300), (550, 300), (450, 450)]:
        assert _near(picture, x, y, BLUE), (x, y)
    assert (picture[240:360, 140:260] == 128).all()  # nothing inside
    assert (image == 128).all()  # the caller's array is left alone


def test_labels_say_class_and_score(visualizer, monkeypatch):
    image = np.full((500, 600, 3), 128, dtype=np.uint8)
    said = []
    monkeypatch.setattr(
        'ddetr.visualization.local_visualizer.draw_boxes', lambda image, boxes, texts, *_: said.extend(texts)
    )
    instances = _instances(
        [9, 9, 99, 99],
        [9, 9, 99, 99],
        [9, 9, 99, 99],
        labels=np.array([0, 1, 7]),
        scores=np.array([0.876, 0.5, 0.9]),
    )
    visualizer.draw_instances(image, instances)
    assert said == ['dog 0.50', 'cat 0.88', 'class 7 0.90']  # the best last, on top


def test_small_images_are_enlarged_with_their_boxes(visualizer):
    image = np.full((96, 120, 3), 128, dtype=np.uint8)
    picture = visualizer.draw_instances(image, _instances([20, 40, 60, 80], labels=np.array([0])))
    assert picture.shape == (480, 600, 3)
    assert _near(picture, 5 * 20, 5 * 60, RED)
    assert _near(picture, 5 * 40, 5 * 80, RED)


def test_ground_truth_and_detections_side_by_side(visualizer, tmp_path):
    image = np.full((500, 600, 3), 128, dtype=np.uint8)
    truth = _instances([100, 200, 300, 400], labels=np.array([0])).to_tensor()
    found = _instances(
        [100, 200, 300, 400], [350, 100, 550, 450], labels=np.array([1, 1]), scores=np.array([0.9, 0.2])
    ).to_tensor()
    truth.bboxes *= torch.tensor([2, 0.5, 2, 0.5])  # in pixels of the network's input image
    sample = DetDataSample(gt_instances=truth, pred_instances=found, metainfo={'scale_factor': (2.0, 0.5)})
    visualizer.add_datasample('a', image, sample, pred_score_thr=0.5, out_file=str(tmp_path / 'b' / 'a.png'))
    picture = cv2.imread(str(tmp_path / 'b' / 'a.png'))[..., ::-1]
    assert picture.shape == (500, 1200, 3)
    assert _near(picture, 100, 300, RED)
    assert _near(picture, 700, 300, BLUE)
    assert not _near(picture, 600 + 450, 450, BLUE)  # scored below the threshold
    assert truth.bboxes.tolist() == [[200, 100, 600, 200]]  # the sample is left alone
