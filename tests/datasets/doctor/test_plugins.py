import sys
from types import SimpleNamespace

import pytest

from ddetr.datasets.doctor import examine, to_fiftyone
from ddetr.utils import InputError


def test_without_fiftyone_there_is_one_clear_error(clean_root, monkeypatch):
    monkeypatch.setitem(sys.modules, 'fiftyone', None)
    with pytest.raises(InputError, match='pip install fiftyone'):
        to_fiftyone(examine(clean_root, images=False), 'mine')


class Sample(dict):
    """Stand-in for FiftyOne's sample, with the part used by the plugin."""

    def __init__(self, filepath, tags):
        super().__init__(filepath=filepath, tags=tags)


class Dataset:
    made: list = []

    def __init__(self, name, persistent):
        self.name, self.samples = name, []
        Dataset.made.append(self)

    def add_samples(self, samples):
        self.samples += samples


def test_fiftyone_gets_relative_boxes_and_faults_as_tags(data, monkeypatch):
    record = data.train['images'][0]
    record_boxes = data.boxes(0)
    data.add_box(0, [3, 3, 0, 0])
    fake = SimpleNamespace(
        Sample=Sample,
        Dataset=Dataset,
        Detection=lambda **keys: keys,
        Detections=lambda detections: detections,
        dataset_exists=lambda name: name == 'taken',
    )
    monkeypatch.setitem(sys.modules, 'fiftyone', fake)
    report = examine(data.save(), images=False)
    with pytest.raises(InputError, match='taken'):
        to_fiftyone(report, 'taken')
    assert '60 images' in to_fiftyone(report, 'mine')
    first = Dataset.made[-1].samples[0]
    assert first['tags'] == ['train', 'box without area']
    x, y, w, h = record_boxes[0]['bbox']
    relative = [x / record['width'], y / record['height'], w / record['width'], h / record['height']]
    assert first['ground_truth'][0]['bounding_box'] == pytest.approx(relative)
    assert len(first['ground_truth']) == len(record_boxes)
