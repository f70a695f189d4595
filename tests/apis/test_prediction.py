"""Prediction on files, arrays and videos, and its output files."""

import csv
import functools
import http.server
import json
import shutil
import threading

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ddetr.apis import DetInferencer, PredictOptions, Tiling, predict_files
from ddetr.apis.results import Selection, labels_of
from ddetr.apis.writers import WRITERS, category_ids_for
from ddetr.utils import InputError
from ddetr.utils.coco_classes import COCO_CLASSES, COCO_IDS
from ddetr.utils.names import RESULT_FORMATS


@pytest.fixture(scope='module')
def detector(tiny_run):
    return DetInferencer(checkpoint=tiny_run.checkpoint, device='cpu')


@pytest.fixture(scope='module')
def arrays():
    """Images of three sizes, with no two consecutive images of the same size."""
    numbers = np.random.default_rng(0)
    sizes = [(64, 64), (48, 90), (64, 64), (90, 48), (48, 90), (64, 64), (48, 90)]
    return [numbers.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def _same(found, expected, pixels=0.05, score=1e-3):
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.bboxes, expected.bboxes, atol=pixels, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=score, rtol=0)
    assert torch.equal(found.labels, expected.labels)


def test_batches_give_the_same_results_as_single_images_in_order(detector, arrays):
    sizes = []
    hook = detector.model.data_preprocessor.register_forward_pre_hook(
        lambda _, inputs: sizes.append([image.shape for image in inputs[0]['inputs']])
    )
    results = list(detector.predict((array for array in arrays), batch_size=3))
    hook.remove()
    assert [len(batch) for batch in sizes] == [3, 3, 1]
    assert all(len(set(batch)) == 1 for batch in sizes)
    for array, result in zip(arrays, results, strict=True):
        assert result.source is array
        assert result.sample.ori_shape == array.shape[:2]
        _same(result.sample.pred_instances, detector(array).pred_instances)


def test_exif_rotation_is_applied_to_pillow_images(detector):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.info['exif'] = exif.tobytes()
    image.getexif()[0x0112] = 6
    turned = np.ascontiguousarray(np.rot90(pixels, -1)[..., ::-1])
    _same(detector(image).pred_instances, detector(turned).pred_instances, 0, 0)


@pytest.mark.parametrize(
    'array', [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), np.uint8)]
)
def test_invalid_image_arrays_raise(detector, array):
    with pytest.raises(InputError, match=r'\(H, W, 3\) BGR uint8, got'):
        detector(array)


def test_urls(detector, tiny_run):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tiny_run.data_root / 'val2017'
    with http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Quiet, directory=folder)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        by_address = detector(f'{address}/000000000001.jpg').pred_instances
        with pytest.raises(InputError, match=r'nothing\.jpg cannot be read: HTTP Error 404'):
            detector(f'{address}/nothing.jpg')
        server.shutdown()
    _same(by_address, detector(folder / '000000000001.jpg').pred_instances, 0, 0)


def test_selection(detector, arrays):
    sample = detector(arrays[0])
    found = sample.pred_instances
    labels = labels_of(['ring', 1], detector.classes)
    assert labels == {4, 1}
    threshold = float(found.scores[40])
    wanted = [
        i for i in range(len(found)) if found.labels[i].item() in labels and found.scores[i] >= threshold
    ]
    kept = Selection(threshold, labels, top_k=3)(sample).pred_instances
    assert torch.equal(kept.scores, found.scores[wanted[:3]])
    assert torch.equal(kept.labels, found.labels[wanted[:3]])
    with pytest.raises(
        InputError, match=r"class 'rings' is not one of the 6 classes of the checkpoint; did you mean ring"
    ):
        labels_of(['rings'], detector.classes)
    with pytest.raises(InputError, match=r"class '6' is not .*: 0 circle, 1 square"):
        labels_of(['6'], detector.classes)
    assert labels_of(['1'], ['7', '1']) == {1}  # a name before a number


def test_all_output_formats_agree(detector, tiny_run, tmp_path):
    options = PredictOptions(str(tmp_path), RESULT_FORMATS, score_thr=0, top_k=5, batch_size=2)
    summary = predict_files(detector, tiny_run.data_root / 'val2017', options)
    assert summary[:3] == (4, 0, 20)
    coco = COCO(str(tmp_path / 'detections.coco.json'))
    lines = list(csv.DictReader((tmp_path / 'detections.csv').open()))
    assert {c['id']: c['name'] for c in coco.dataset['categories']} == {
        c['id']: c['name']
        for c in json.loads((tiny_run.data_root / 'annotations/instances_val2017.json').read_text())[
            'categories'
        ]
    }
    for image in coco.dataset['images']:
        name, width, height = image['file_name'], image['width'], image['height']
        expected = detector(tiny_run.data_root / 'val2017' / name).pred_instances[:5]
        content = json.loads((tmp_path / f'{name}.json').read_text())
        boxes = np.array([row['bbox'] for row in content['detections']])
        np.testing.assert_allclose(boxes, expected.bboxes.numpy(), atol=1e-3)
        rows = [line for line in lines if line['image'] == name]
        np.testing.assert_allclose([[float(row[k]) for k in ('x1', 'y1', 'x2', 'y2')] for row in rows], boxes)
        assert [row['class'] for row in rows] == [detector.classes[i] for i in expected.labels]
        annotations = coco.imgToAnns[image['id']]
        xywh = np.array([annotation['bbox'] for annotation in annotations])
        np.testing.assert_allclose(np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), boxes, atol=1e-3)
        assert [coco.cats[a['category_id']]['name'] for a in annotations] == [row['class'] for row in rows]
        yolo = np.loadtxt(tmp_path / 'labels' / f'{name.removesuffix(".jpg")}.txt')
        assert yolo[:, 0].tolist() == expected.labels.tolist()
        centres, sizes = yolo[:, 1:3] * [width, height], yolo[:, 3:5] * [width, height]
        np.testing.assert_allclose(np.hstack([centres - sizes / 2, centres + sizes / 2]), boxes, atol=1e-3)
        assert (tmp_path / name).exists()
    assert (tmp_path / 'classes.txt').read_text().split() == list(detector.classes)
    assert tuple(WRITERS) == RESULT_FORMATS


def test_category_ids():
    assert category_ids_for({'classes': COCO_CLASSES}) == COCO_IDS
    assert list(category_ids_for({'classes': ('a', 'b')})) == [1, 2]
    assert category_ids_for({'classes': ('a', 'b'), 'category_ids': [7, 3]}) == [7, 3]


def test_broken_images_are_reported_and_all_others_processed(detector, tiny_run, tmp_path):
    folder = tmp_path / 'images'
    shutil.copytree(tiny_run.data_root / 'val2017', folder)
    broken = folder / '000000000002.jpg'
    broken.write_bytes(broken.read_bytes()[:300])
    summary = predict_files(
        detector, [folder], PredictOptions(str(tmp_path / 'out'), ('json', 'csv'), batch_size=3)
    )
    assert summary.images == 3
    (failure,) = summary.failures
    assert str(broken) in failure
    written = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert written == [*(f'00000000000{i}.jpg.json' for i in (1, 3, 4)), 'detections.csv']


def test_images_with_the_same_name_do_not_overwrite_each_other(detector, tiny_run, tmp_path):
    image = tiny_run.data_root / 'val2017' / '000000000001.jpg'
    for place in ('a/cat.jpg', 'b/cat.jpg', 'b/cat.png'):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / place)
    options = PredictOptions(str(tmp_path / 'out'), ('json', 'yolo'))
    predict_files(detector, [f'{tmp_path}/?/*'], options)
    written = {
        str(path.relative_to(tmp_path / 'out')) for path in (tmp_path / 'out').rglob('*') if path.is_file()
    }
    assert written == {
        'a/cat.jpg.json', 'b/cat.jpg.json', 'cat.png.json', 'classes.txt',
        'labels/a/cat.txt', 'labels/b/cat.txt', 'labels/cat.txt',
    }  # fmt: skip


def test_failed_run_leaves_no_partial_files(detector, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, '_run', lambda items: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict_files(
            detector, tiny_run.data_root / 'val2017', PredictOptions(str(tmp_path), ('csv', 'coco'))
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def video(tmp_path):
    """Video of a moving square, ten frames at 12 fps."""
    writer = cv2.VideoWriter(str(tmp_path / 'in.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 12, (96, 64))
    for shift in range(10):
        frame = np.full((64, 96, 3), 90, np.uint8)
        frame[20:40, 5 * shift : 5 * shift + 20] = (0, 0, 255)
        writer.write(frame)
    writer.release()
    return tmp_path / 'in.avi'


def test_video(detector, video, tmp_path):
    options = PredictOptions(str(tmp_path / 'out'), score_thr=0, top_k=2, batch_size=4)
    assert predict_files(detector, str(video), options) == (0, 10, 20, ())
    drawn = cv2.VideoCapture(str(tmp_path / 'out/in.avi'))
    assert (drawn.get(cv2.CAP_PROP_FPS), drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (12, 10)
    lines = [json.loads(line) for line in (tmp_path / 'out/in.avi.jsonl').read_text().splitlines()]
    assert [line['frame'] for line in lines] == list(range(10))
    assert lines[6]['time_s'] == 0.5
    read = cv2.VideoCapture(str(video))
    for line in lines:
        expected = detector(read.read()[1]).pred_instances[:2]
        np.testing.assert_allclose([row['bbox'] for row in line['detections']], expected.bboxes, atol=0.05)


def test_a_video_is_not_overwritten_by_its_own_result(detector, video, tmp_path):
    before = video.read_bytes()
    summary = predict_files(detector, str(video), PredictOptions(str(tmp_path)))
    assert 'would overwrite the input file' in summary.failures[0]
    assert video.read_bytes() == before


def test_an_image_is_not_overwritten_by_its_own_picture(detector, tiny_run, tmp_path):
    folder = tmp_path / 'images'
    shutil.copytree(tiny_run.data_root / 'val2017', folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match='would overwrite the input file: choose another output folder'):
        predict_files(detector, [folder], PredictOptions(str(folder)))
    with pytest.raises(InputError, match='would overwrite the input file'):
        detector.save(next(iter(before)), folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_image_within_one_tile_gives_the_same_detections_as_without_tiles(tiny_run, detector, arrays):
    pytest.importorskip('supervision')
    tiled = DetInferencer(checkpoint=tiny_run.checkpoint, device='cpu', tiling=Tiling(100, 20))
    for array in arrays[:3]:
        _same(tiled(array).pred_instances, detector(array).pred_instances, 0, 0)


@pytest.mark.parametrize('batch_size', [1, 4])
def test_tiles_cover_a_large_image_and_boxes_are_in_its_pixels(tiny_run, detector, batch_size):
    """The image repeats the content of one tile four times, so all tiles have the same detections."""
    pytest.importorskip('supervision')
    tiling = Tiling(64, 0, iou_thr=1.0, min_score=0.0, batch_size=batch_size)
    tiled = DetInferencer(checkpoint=tiny_run.checkpoint, device='cpu', tiling=tiling)
    tile = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    single = detector(tile).pred_instances
    found = tiled(np.tile(tile, (2, 2, 1))).pred_instances
    assert (found.scores.diff() <= 0).all()
    for x, y in ((0, 0), (64, 0), (0, 64), (64, 64)):
        best = single.bboxes[0] + torch.tensor([x, y, x, y])
        distance = (found.bboxes - best).abs().amax(1)
        nearest = distance.argmin()
        assert distance[nearest] < 0.05
        assert found.labels[distance < 0.05].eq(single.labels[0]).any()


def test_invalid_tile_sizes_raise(tiny_run):
    with pytest.raises(InputError, match=r'tiles of 64 pixels cannot overlap by 64'):
        DetInferencer(checkpoint=tiny_run.checkpoint, tiling=Tiling(64, 64))


def test_to_supervision(detector, arrays):
    supervision = pytest.importorskip('supervision')
    sample = detector(arrays[0])
    found = detector.to_supervision(sample, score_thr=float(sample.pred_instances.scores[9]))
    assert isinstance(found, supervision.Detections)
    assert len(found) == 10
    np.testing.assert_array_equal(found.xyxy, sample.pred_instances.bboxes[:10])
    assert found.data['class_name'][0] == detector.classes[found.class_id[0]]
    assert len(detector.to_supervision(sample, score_thr=2)) == 0


def test_missing_supervision_package_raises_with_install_hint(detector, arrays, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'supervision', None)
    with pytest.raises(InputError, match=r"pip install 'ddetr\[supervision\]'"):
        detector.to_supervision(detector(arrays[0]))
