import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ddetr.apis import DetInferencer, inference_detector, init_detector, load_config
from ddetr.datasets import LoadAnnotations
from ddetr.utils import ConfigError, InputError


@pytest.fixture(scope='module')
def model(tiny_run):
    return init_detector(tiny_run.config, tiny_run.checkpoint, device='cpu')


@pytest.fixture(scope='module')
def images(tiny_run):
    return sorted((tiny_run.data_root / 'val2017').glob('*.jpg'))


def test_files_and_arrays_give_the_same(model, images):
    by_file = inference_detector(model, images[0])
    by_array, second = inference_detector(model, [cv2.imread(str(images[0])), images[1]])
    for key in ('bboxes', 'scores', 'labels'):
        assert torch.equal(by_file.pred_instances[key], by_array.pred_instances[key])
    assert by_file.ori_shape == cv2.imread(str(images[0])).shape[:2]
    assert not torch.equal(second.pred_instances.scores, by_file.pred_instances.scores)


def test_same_detections_as_the_test_command(tiny_run, model, images, run, tmp_path):
    """Inference API compared with loader, Runner and metric."""
    out = tmp_path / 'found.json'
    run(
        sys.executable, 'tools/test.py', tiny_run.config, tiny_run.checkpoint, '--work-dir', tmp_path, '--out', out,
        '--cfg-options', 'test_dataloader.batch_size=1',
    )  # fmt: skip
    rows = json.loads(out.read_text())
    annotations = json.loads((tiny_run.data_root / 'annotations' / 'instances_val2017.json').read_text())
    names = {category['id']: category['name'] for category in annotations['categories']}
    ids = {image['file_name']: image['id'] for image in annotations['images']}
    for path in images:
        found = inference_detector(model, path).pred_instances
        written = [row for row in rows if row['image_id'] == ids[path.name]]
        boxes_xywh = np.array([row['bbox'] for row in written])
        boxes_xyxy_px = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
        np.testing.assert_allclose(found.bboxes.numpy(), boxes_xyxy_px, atol=1e-3)
        np.testing.assert_allclose(found.scores.numpy(), [row['score'] for row in written], atol=1e-6)
        labels = [model.dataset_meta['classes'][label] for label in found.labels]
        assert labels == [names[row['category_id']] for row in written]


def test_class_names_come_with_the_checkpoint(tiny_run, tmp_path):
    content = torch.load(tiny_run.checkpoint, weights_only=False)
    content['meta']['dataset_meta']['classes'] = tuple('abcdef')
    torch.save(content, tmp_path / 'a.pth')
    assert init_detector(tiny_run.config, tmp_path / 'a.pth').dataset_meta['classes'] == tuple('abcdef')


def test_classes_are_numbered_without_a_checkpoint(tiny_run):
    assert init_detector(tiny_run.config).dataset_meta['classes'][:2] == ['class 0', 'class 1']


def test_save_writes_picture_and_json(tiny_run, images, tmp_path):
    detector = DetInferencer(tiny_run.config, tiny_run.checkpoint, device='cpu')
    sample = detector(images[0])
    threshold = float(sample.pred_instances.scores[3])  # the fourth best
    written = detector.save(images[0], tmp_path / 'out', threshold)
    content = json.loads(written.detections.read_text())
    height, width = cv2.imread(str(images[0])).shape[:2]
    assert (content['image'], content['width'], content['height']) == (images[0].name, width, height)
    assert len(content['detections']) == written.detected >= 4
    assert content['detections'][0]['bbox'] == sample.pred_instances.bboxes[0].tolist()
    assert content['detections'][0]['class'] == detector.classes[sample.pred_instances.labels[0]]
    picture = cv2.imread(str(written.picture))
    assert min(picture.shape[:2]) == 480  # enlarged from about 64


def test_images_that_cannot_be_read(model, images, tmp_path):
    broken = tmp_path / 'broken.jpg'
    shutil.copy(images[0], broken)
    broken.write_bytes(broken.read_bytes()[:300])
    with pytest.raises(InputError, match=r'broken\.jpg'):
        inference_detector(model, broken)


def test_a_config_without_a_test_pipeline(tiny_run):
    model = init_detector(tiny_run.config, cfg_options={'test_dataloader.dataset.pipeline': []})
    with pytest.raises(ConfigError, match=r'test_dataloader\.dataset\.pipeline'):
        inference_detector(model, np.zeros((64, 64, 3), np.uint8))


@pytest.mark.parametrize('kind', ['mmdet.LoadAnnotations', LoadAnnotations])
def test_annotation_transforms_are_skipped_under_any_name(tiny_run, images, kind):
    cfg = load_config(tiny_run.config)
    expected = inference_detector(init_detector(cfg, tiny_run.checkpoint, device='cpu'), images[0])
    steps = cfg.test_dataloader.dataset.pipeline
    assert steps[2].type == 'LoadAnnotations'
    steps[2].type = kind
    found = inference_detector(init_detector(cfg, tiny_run.checkpoint, device='cpu'), images[0])
    assert torch.equal(found.pred_instances.bboxes, expected.pred_instances.bboxes)


def test_pictures_are_of_the_image_that_the_configs_loader_reads(tiny_run, tmp_path):
    """EXIF rotation is ignored if the config's loader ignores it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png', exif=exif)
    options = {'test_dataloader.dataset.pipeline.0.color_type': 'color_ignore_orientation'}
    detector = DetInferencer(tiny_run.config, tiny_run.checkpoint, 'cpu', options)
    written = detector.save(tmp_path / 'a.png', tmp_path / 'out', score_thr=2)
    assert json.loads(written.detections.read_text())['width'] == 700
    assert (cv2.imread(str(written.picture))[..., ::-1] == pixels).all()
