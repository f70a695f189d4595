import itertools

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from PIL import Image, ImageOps

from ddetr.datasets import FilterAnnotations, LoadAnnotations, LoadImageFromFile, PackDetInputs, RandomCrop
from ddetr.utils.errors import InputError


@pytest.fixture(autouse=True)
def _numpy_seed():
    np.random.seed(0)


def _picture(height=60, width=80):
    """A smooth random picture, BGR."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _pillow(picture):
    return Image.fromarray(picture[..., ::-1].copy())


def _load(path, **results):
    return LoadImageFromFile()({'img_path': str(path), **results})


# --- loading


def test_every_kind_of_file_becomes_8_bit_bgr(tmp_path):
    picture = _pillow(_picture())
    alpha = Image.fromarray(np.full((60, 80), 9, dtype=np.uint8))
    with_alpha = picture.copy()
    with_alpha.putalpha(alpha)
    files = {
        'grey.jpg': picture.convert('L'),
        'cmyk.jpg': picture.convert('CMYK'),
        'plain.jpg': picture,
        'plain.png': picture,
        'palette.png': picture.convert('P'),
        'alpha.png': with_alpha,
        'one_bit.png': picture.convert('1'),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        expected = np.array(Image.open(tmp_path / name).convert('RGB'))[..., ::-1].astype(int)

        loaded = _load(tmp_path / name, height=60, width=80)

        assert loaded['img'].dtype == np.uint8
        assert loaded['img'].shape == (60, 80, 3)
        assert loaded['img_shape'] == loaded['ori_shape'] == (60, 80)
        # CMYK to RGB is not standardised: Pillow and OpenCV round differently
        assert np.abs(loaded['img'] - expected).max() <= (8 if 'cmyk' in name else 2), name


def test_16_bit_png_is_scaled_to_8_bits(tmp_path):
    deep = np.linspace(0, 65535, 60 * 80).reshape(60, 80).astype(np.uint16)
    cv2.imwrite(str(tmp_path / 'deep.png'), deep)

    loaded = _load(tmp_path / 'deep.png')['img']

    assert np.abs(loaded.astype(float) - (deep / 257)[..., None]).max() <= 1


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_rotation_is_applied_as_viewers_do(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _pillow(_picture()).save(tmp_path / 'a.png', exif=exif)  # lossless: pixels can be compared
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / 'a.png')))[..., ::-1]

    np.testing.assert_array_equal(_load(tmp_path / 'a.png')['img'], expected)


@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_annotations_decide_whether_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    _pillow(_picture()).save(tmp_path / 'a.png', exif=exif)

    rotated = _load(tmp_path / 'a.png', height=80, width=60)
    unrotated = _load(tmp_path / 'a.png', height=60, width=80)

    assert rotated['img'].shape == (80, 60, 3)
    np.testing.assert_array_equal(unrotated['img'], _picture())


def test_image_size_other_than_annotated_raises(tmp_path):
    _pillow(_picture()).save(tmp_path / 'a.jpg')

    with pytest.raises(InputError, match=r'a\.jpg is 80 x 60 pixels, but .* says 160 x 120'):
        _load(tmp_path / 'a.jpg', height=120, width=160)


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
@pytest.mark.parametrize('kept', [0.0, 0.02, 0.5, 0.9])
def test_truncated_images_raise(tmp_path, suffix, kept):
    data = cv2.imencode(f'.{suffix}', _picture(300, 400))[1].tobytes()
    (tmp_path / f'a.{suffix}').write_bytes(data[: int(kept * len(data))])

    with pytest.raises(
        InputError, match=rf'a\.{suffix} cannot be decoded: its \d+ bytes are truncated or not'
    ):
        _load(tmp_path / f'a.{suffix}')


def test_missing_images_raise_or_are_skipped(tmp_path):
    with pytest.raises(InputError, match=r'none\.jpg does not exist'):
        _load(tmp_path / 'none.jpg')
    assert LoadImageFromFile(ignore_empty=True)({'img_path': str(tmp_path / 'none.jpg')}) is None


def test_real_images_have_their_annotated_size(photographs):
    paths = sorted((photographs / 'coco/val2017').glob('*.jpg'))[:20]
    for path in paths:
        with Image.open(path) as image:
            width, height = image.size
            expected = np.array(image.convert('RGB'))[..., ::-1].astype(int)
        loaded = _load(path, height=height, width=width)['img']
        assert np.abs(loaded - expected).mean() < 1


def test_annotations_become_arrays():
    instances = [
        {'bbox': [1, 2, 3, 4], 'bbox_label': 5, 'ignore_flag': 0},
        {'bbox': [5, 6, 7, 8], 'bbox_label': 6, 'ignore_flag': 1},
    ]

    loaded = LoadAnnotations(with_bbox=True, box_type='hbox')({'instances': instances})

    np.testing.assert_array_equal(loaded['gt_bboxes'], np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32))
    np.testing.assert_array_equal(loaded['gt_bboxes_labels'], [5, 6])
    np.testing.assert_array_equal(loaded['gt_ignore_flags'], [False, True])
    none = LoadAnnotations()({'instances': []})
    assert [none[k].shape for k in ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags')] == [
        (0, 4),
        (0,),
        (0,),
    ]


def test_unsupported_options_raise():
    with pytest.raises(ValueError, match='masks are not supported'):
        LoadAnnotations(with_mask=True)
    with pytest.raises(ValueError, match='rbox'):
        LoadAnnotations(box_type='rbox')
    with pytest.raises(ValueError, match='grayscale'):
        LoadImageFromFile(color_type='grayscale')


# --- cropping and filtering


def _results(height, width, *boxes):
    return {
        'img': np.zeros((height, width, 3), dtype=np.uint8),
        'gt_bboxes': np.array(boxes, dtype=np.float32).reshape(-1, 4),
        'gt_bboxes_labels': np.arange(len(boxes)),
        'gt_ignore_flags': np.zeros(len(boxes), dtype=bool),
    }


@pytest.mark.parametrize(
    ('crop_type', 'crop_size', 'heights', 'widths'),
    [
        ('absolute', (30, 20), (20, 20), (30, 30)),  # (w, h)
        ('absolute', (500, 20), (20, 20), (60, 60)),
        ('absolute_range', (10, 15), (10, 15), (10, 15)),
        ('absolute_range', (30, 90), (30, 40), (30, 60)),
        ('absolute_range', (70, 90), (40, 40), (60, 60)),
        ('relative', (0.5, 0.25), (10, 10), (30, 30)),  # (w, h)
        ('relative_range', (0.5, 0.9), (20, 40), (54, 60)),  # (h, w)
    ],
)
def test_windows_have_the_requested_sizes(crop_type, crop_size, heights, widths):
    crop = RandomCrop(crop_size=crop_size, crop_type=crop_type, allow_negative_crop=True)

    shapes = np.array([crop(_results(40, 60))['img_shape'] for _ in range(400)])

    assert (shapes[:, 0].min(), shapes[:, 0].max()) == heights
    assert (shapes[:, 1].min(), shapes[:, 1].max()) == widths


def test_windows_without_boxes_are_allowed_or_not():
    results = _results(40, 60, [0, 0, 5, 5])

    may_be_empty = RandomCrop(crop_size=(10, 10), allow_negative_crop=True)
    found = [may_be_empty(dict(results)) for _ in range(100)]
    assert {len(f['gt_bboxes']) for f in found} == {0, 1}
    assert all(len(f['gt_bboxes_labels']) == len(f['gt_ignore_flags']) == len(f['gt_bboxes']) for f in found)
    must_have_boxes = RandomCrop(crop_size=(10, 10))
    found = [must_have_boxes(dict(results)) for _ in range(100)]
    assert None in found
    assert all(len(f['gt_bboxes']) == 1 for f in found if f is not None)


def test_boxes_are_clipped_to_the_window_or_not():
    whole = _results(40, 60, [10, 10, 50, 30])
    clipped = RandomCrop(crop_size=(20, 10), allow_negative_crop=True)
    unclipped = RandomCrop(crop_size=(20, 10), allow_negative_crop=True, bbox_clip_border=False)

    for _ in range(50):
        for box in clipped(dict(whole))['gt_bboxes']:
            assert 0 <= box[0] < box[2] <= 20
            assert 0 <= box[1] < box[3] <= 10
        for box in unclipped(dict(whole))['gt_bboxes']:
            np.testing.assert_array_equal(box[2:] - box[:2], [40, 20])


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'crop_size': (10, 10), 'crop_type': 'relativ'}, "crop_type='relativ'.*choose one of"),
        ({'crop_size': (0, 10)}, 'must be positive'),
        ({'crop_size': (2, 0.5), 'crop_type': 'relative'}, r'must be in \(0, 1\]'),
        ({'crop_size': (20, 10), 'crop_type': 'absolute_range'}, 'must be ascending'),
    ],
)
def test_invalid_windows_raise(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        RandomCrop(**arguments)


def test_small_boxes_are_filtered():
    results = _results(40, 60, [0, 0, 5, 5], [0, 0, 3, 20], [0, 0, 20, 3], [0, 0, 30, 30])

    kept = FilterAnnotations(min_gt_bbox_wh=(4, 4))(dict(results))
    assert kept['gt_bboxes_labels'].tolist() == [0, 3]
    assert FilterAnnotations(min_gt_bbox_wh=(50, 50))(dict(results)) is None
    none = FilterAnnotations(min_gt_bbox_wh=(50, 50), keep_empty=False)(dict(results))
    assert none['gt_bboxes'].shape == (0, 4)


# --- packing


def test_packing_separates_crowds():
    results = {
        'img': np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        'gt_bboxes': np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float64),
        'gt_bboxes_labels': np.array([4, 2]),
        'gt_ignore_flags': np.array([True, False]),
        'img_id': 3,
        'flip': False,
    }

    packed = PackDetInputs(meta_keys=('img_id', 'flip', 'scale_factor'))(results)
    sample = packed['data_samples']

    assert packed['inputs'].shape == (3, 2, 4)
    assert packed['inputs'].dtype == torch.uint8
    assert packed['inputs'][:, 1, 2].tolist() == results['img'][1, 2].tolist()
    assert sample.gt_instances.bboxes.dtype == torch.float32
    assert sample.gt_instances.bboxes.tolist() == [[5, 6, 7, 8]]
    assert sample.gt_instances.labels.tolist() == [2]
    assert sample.ignored_instances.bboxes.tolist() == [[1, 2, 3, 4]]
    assert sample.metainfo == {'img_id': 3, 'flip': False}


def test_without_annotations_there_is_no_ground_truth():
    sample = PackDetInputs()({'img': np.zeros((4, 4, 3), dtype=np.uint8)})['data_samples']

    assert 'gt_instances' not in sample


# --- whole pipelines: a box that is painted must stay where its annotation goes


def _painted_extent(channel):
    """x1, y1, x2, y2 of what is painted, from the pixels alone; None for nothing."""
    rows, columns = np.flatnonzero(channel.max(axis=1) > 127), np.flatnonzero(channel.max(axis=0) > 127)
    return None if not rows.size else np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _painted_file(tmp_path):
    image = np.zeros((240, 320, 3), dtype=np.uint8)
    boxes = [[40, 30, 140, 110], [200, 150, 260, 230]]
    for channel, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, channel] = 255
    Image.fromarray(image[..., ::-1].copy()).save(tmp_path / 'a.png')
    instances = [{'bbox': box, 'bbox_label': label, 'ignore_flag': label} for label, box in enumerate(boxes)]
    return {
        'img_path': str(tmp_path / 'a.png'),
        'height': 240,
        'width': 320,
        'img_id': 1,
        'instances': instances,
    }


def _detr_pipeline(repo_root):
    pipeline = Config.fromfile(repo_root / 'configs/_base_/datasets/coco_detection_detr.py').train_pipeline
    scaled_down = [(s, 1333) for s in (160, 200, 240)]
    resize, (resize_for_crop, crop, resize_after) = pipeline[3]['transforms']
    resize[0].scales = resize_after.scales = scaled_down
    resize_for_crop.scales = [(130, 4200), (170, 4200)]
    crop.crop_size = (80, 200)
    return pipeline


def test_boxes_follow_the_pixels_through_detrs_augmentation(tmp_path, repo_root):
    pipeline = Compose(_detr_pipeline(repo_root))
    item = _painted_file(tmp_path)
    seen, flipped = 0, 0

    for _ in range(120):
        packed = pipeline({**item, 'instances': [dict(i) for i in item['instances']]})
        pixels, sample = packed['inputs'].numpy(), packed['data_samples']
        assert sample.img_shape == pixels.shape[1:]
        flipped += sample.flip
        for channel, instances in enumerate((sample.gt_instances, sample.ignored_instances)):
            painted = _painted_extent(pixels[channel])
            if len(instances) == 0:
                assert painted is None or (painted[2:] - painted[:2]).min() <= 2  # blurred in from the edge
                continue
            assert instances.labels.tolist() == [channel]
            box = instances.bboxes[0].numpy()
            if (box[2:] - box[:2]).min() > 3:  # thinner ones are blurred away
                np.testing.assert_allclose(painted, box, atol=1.5)
                seen += 1
    assert seen > 120
    assert 30 < flipped < 90


def test_test_pipeline_gives_boxes_of_the_input_image(tmp_path, repo_root):
    pipeline = Compose(Config.fromfile(repo_root / 'configs/_base_/datasets/coco_detection.py').test_pipeline)

    packed = pipeline(_painted_file(tmp_path))
    sample = packed['data_samples']

    assert packed['inputs'].shape == (3, 800, 1067)
    assert sample.ori_shape == (240, 320)
    assert sample.scale_factor == pytest.approx((1067 / 320, 800 / 240))
    boxes = sample.gt_instances.bboxes
    np.testing.assert_allclose(_painted_extent(packed['inputs'][0].numpy()), boxes[0], atol=1.5)
    np.testing.assert_allclose(sample.to_original(boxes), [[40, 30, 140, 110]], rtol=1e-6)
    assert sample.annotations.boxes_xywh_px.tolist()[0] == [40, 30, 100, 80]
    assert sample.annotations.crowd.tolist() == [False, True]


@pytest.mark.parametrize(
    'order', list(itertools.permutations(['LoadAnnotations', 'Resize', 'Resize2', 'RandomFlip']))
)
def test_boxes_match_the_input_image_for_any_order_of_transforms(tmp_path, order):
    steps = {
        'LoadAnnotations': {'type': 'LoadAnnotations'},
        'Resize': {'type': 'Resize', 'scale': (200, 90)},
        'Resize2': {'type': 'Resize', 'scale': (400, 500)},
        'RandomFlip': {'type': 'RandomFlip', 'prob': 1.0},
    }
    pipeline = Compose([{'type': 'LoadImageFromFile'}, *map(steps.get, order), {'type': 'PackDetInputs'}])
    first_w, first_h = (200, 90) if order.index('Resize') > order.index('Resize2') else (400, 500)

    sample = pipeline(_painted_file(tmp_path))['data_samples']

    assert sample.img_shape == (first_h, first_w)
    x1, y1, x2, y2 = np.array([320 - 140, 30, 320 - 40, 110]) * np.tile([first_w / 320, first_h / 240], 2)
    np.testing.assert_allclose(sample.gt_instances.bboxes, [[x1, y1, x2, y2]], rtol=1e-5)
    np.testing.assert_allclose(
        sample.to_original(sample.gt_instances.bboxes), [[180, 30, 280, 110]], rtol=1e-5
    )


def test_large_scale_jittering_runs(tmp_path):
    """The steps of MMDetection's LSJ configs."""
    pipeline = Compose(
        [
            {'type': 'LoadImageFromFile'},
            {'type': 'LoadAnnotations', 'with_bbox': True},
            {'type': 'RandomResize', 'scale': (128, 128), 'ratio_range': (0.1, 2.0), 'keep_ratio': True},
            {
                'type': 'RandomCrop', 'crop_type': 'absolute_range', 'crop_size': (128, 128),
                'recompute_bbox': True, 'allow_negative_crop': True,
            },
            {'type': 'FilterAnnotations', 'min_gt_bbox_wh': (1e-2, 1e-2)},
            {'type': 'Pad', 'size': (128, 128)},
            {'type': 'PackDetInputs'},
        ]
    )  # fmt: skip
    item = _painted_file(tmp_path)

    for _ in range(20):
        packed = pipeline({**item, 'instances': [dict(i) for i in item['instances']]})
        if packed is None:
            continue
        assert packed['inputs'].shape == (3, 128, 128)
        painted = _painted_extent(packed['inputs'][0].numpy())
        for box in packed['data_samples'].gt_instances.bboxes.numpy():
            if (box[2:] - box[:2]).min() > 4:
                np.testing.assert_allclose(painted, box, atol=1.5)
