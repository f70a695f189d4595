"""The analysis commands, run on small detectors."""

import csv
import io
import runpy
import sys

import pytest

from ddetr.analysis.flops import build_for_counting, count_macs, trainable_parameters
from ddetr.engine.config import load_config
from tests.conftest import ROOT

TINY = ROOT / 'tests/configs/tiny_shapes.py'
SINGLE_SCALE = ROOT / 'configs/deformable_detr/deformable-detr-single-scale_r50_16xb2-50e_coco.py'


@pytest.fixture
def call(monkeypatch, capsys):
    """Run a tool in this process; return its output."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        runpy.run_path(str(ROOT / 'tools/analysis' / name), run_name='__main__')
        return capsys.readouterr().out

    return run


def test_model_table_shows_published_figures_for_known_configs(call):
    printed = call('model_table.py', TINY, SINGLE_SCALE, '--size', 800, 1067, '--format', 'csv')
    tiny, single_scale = list(csv.reader(io.StringIO(printed)))[1:]
    model = build_for_counting(load_config(TINY))
    measured = f'{trainable_parameters(model) / 1e6:.2f}', f'{count_macs(model, (800, 1067)).total / 1e9:.1f}'
    assert tiny == ['tiny_shapes', measured[0], '', measured[1], '', '']
    assert single_scale[:3] == ['Deformable DETR (single scale)', '33.84', '34']
    assert single_scale[4] == '78'
    # the original's model counts 79.4 G at the mean of 0.889 million pixels, and sampling is 0.04 G of it
    assert float(single_scale[3]) == pytest.approx(79.4 * (800 * 1067) / 0.889e6, rel=0.01)


def test_model_table_averages_over_an_annotation_file_and_lists_parts(call, tmp_path):
    images = [
        {'id': i, 'file_name': f'{i}.jpg', 'width': w, 'height': 160} for i, w in enumerate((160, 240, 999))
    ]
    ann_file = tmp_path / 'ann.json'
    ann_file.write_text(f'{{"images": {images}, "categories": []}}'.replace("'", '"'))
    printed = call(
        'model_table.py', TINY, '--ann-file', ann_file, '--num-images', 2, '--format', 'csv', '--parts'
    )
    lines = list(csv.reader(io.StringIO(printed)))
    model = build_for_counting(load_config(TINY))
    # the tiny config's test size: longer side at most 256, shorter at most 160
    mean = (count_macs(model, (160, 160)).total + count_macs(model, (160, 240)).total) / 2
    assert lines[1][3] == f'{mean / 1e9:.1f}'
    parts = {line[1]: float(line[2]) for line in lines[4:]}
    assert parts.keys() >= {'backbone', 'neck', 'encoder', 'decoder', 'sampling'}
    assert sum(parts.values()) == pytest.approx(mean / 1e9, abs=0.005 * len(parts))


def test_model_table_reports_a_missing_annotation_file(call, capsys):
    with pytest.raises(SystemExit, match='2'):
        call('model_table.py', TINY, '--ann-file', 'nowhere.json')
    assert 'nowhere.json does not exist' in capsys.readouterr().err


def test_count_flow_adds_up_what_it_lists(call):
    printed = call('count_flow.py', TINY)
    for package in ('ddetr', 'ddetr_ops'):
        listed = [line for line in printed.splitlines() if line.startswith(f'{package}/')]
        functions = sum(len(line.split(': ')[1].split(', ')) for line in listed)
        assert f'{package}: {len(listed)} files, {functions} functions' in printed
    assert 'ddetr/models/detectors/base_detector.py: BaseDetector.forward' in printed


def test_benchmark_measures_forms_and_the_limit(call):
    printed = call(
        'benchmark.py', TINY, '--size', 64, 96, '--warmup', 0, '--repeats', 2, '--device', 'cpu',
        '--batch-sizes', 1, 4, '--format', 'csv', '--forms', 'plain', 'amp', 'prepared', '--limit',
    )  # fmt: skip
    head, table = printed.split('\n\n')
    assert 'random images of 64 x 96' in head
    rows = list(csv.DictReader(io.StringIO(table)))
    forms = ['plain', 'amp', 'prepared', 'limit', 'limit bf16']
    assert [(row['measured'], row['batch'], row['form']) for row in rows] == [
        *(('detection', batch, form) for batch in '14' for form in forms),
        ('training', '2', 'plain'), ('training', '2', 'amp'),
    ]  # fmt: skip
    for row in rows:
        assert (row['speed'] == '1.00') or row['form'] != 'plain'
        assert float(row['images/s']) == pytest.approx(
            1000 * int(row['batch']) / float(row['ms/step']), rel=0.01
        )
    training = rows[-2]
    assert float(training['hours/epoch']) == pytest.approx(
        118_287 / float(training['images/s']) / 3600, rel=0.01
    )


def test_benchmark_reads_given_images(call, tiny_run):
    images = tiny_run.data_root / 'val2017'
    printed = call(
        'benchmark.py', TINY, '--images', images, '--warmup', 0, '--repeats', 2, '--device', 'cpu', '--no-training'
    )  # fmt: skip
    assert f'images of {images}' in printed
    assert 'training' not in printed


def test_smoke_run_trains_tests_and_draws(call, tiny_run):
    printed = call(
        'smoke_configs.py', TINY, '--data-root', tiny_run.data_root, '--size', 96, 64, '--iterations', 20,
        '--images', 3, '--format', 'csv',
    )  # fmt: skip
    (row,) = csv.DictReader(io.StringIO(printed[printed.index('config,first loss') :]))
    assert row['config'] == 'tiny_shapes'
    assert float(row['last loss']) < float(row['first loss'])
    assert (row['images tested'], row['pictures']) == ('3', '3')


FOREIGN = """
_base_ = {base!r}
default_scope = 'mmdet'
load_from = 'https://example.org/detector.pth'
pretrained = dict(_delete_=True, type='Pretrained', checkpoint='torchvision://resnet18')
model = dict(backbone=dict(init_cfg=pretrained))
once = {{{{_base_.train_dataloader.dataset}}}}
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=once))
"""
FOREIGN_CONFIGS = {
    'deformable_detr/whole.py': '',
    'detr/another_backbone.py': "model['backbone'].update(type='CSPDarknet')",
    'faster_rcnn/fpn_key.py': 'model.update(neck=dict(start_level=1))',
    'faster_rcnn/out_of_scope.py': '',
}


@pytest.fixture
def config_root(tmp_path):
    """Configs as MMDetection has them, in its folders."""
    for name, change in FOREIGN_CONFIGS.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FOREIGN.format(base=str(TINY)) + change)
    return tmp_path


def test_mmdet_configs_reports_progress_of_each_config(call, tiny_run, config_root):
    out = config_root / 'table.csv'
    printed = call(
        'mmdet_configs.py', config_root, '--data-root', tiny_run.data_root, '--size', 96, 64, '--format', 'csv',
        '--out', out,
    )  # fmt: skip
    table = out.read_text()
    assert printed == table + '\n1 of 3 configs were built, trained a step and tested on 4 images.\n'
    assert list(csv.reader(io.StringIO(table)))[1:] == [
        ['deformable_detr/whole', 'yes', 'yes', 'yes', ''],
        [
            'detr/another_backbone',
            'no',
            'no',
            'no',
            "model.backbone.type='CSPDarknet' is not registered.",
        ],
        ['faster_rcnn/fpn_key', 'no', 'no', 'no', 'model.neck.start_level: ChannelMapper has no such key.'],
    ]


def test_mmdet_configs_shows_unexplained_errors(call, capsys, tiny_run, config_root):
    path = config_root / 'detr/another_backbone.py'
    path.write_text(path.read_text().replace("type='CSPDarknet'", 'depth=19'))
    printed = call('mmdet_configs.py', config_root, '--data-root', tiny_run.data_root, '--only', 'detr/*.py')
    assert '| ResNet depth=19 must be one of ' in printed  # what a constructor refuses is explained
    path.write_text(path.read_text().replace('depth=19', 'depth=50, base_channels=-1'))
    with pytest.raises(SystemExit, match='failed without an explanation'):
        call('mmdet_configs.py', config_root, '--data-root', tiny_run.data_root, '--only', 'detr/*.py')
    assert '| unexplained ' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='2'):
        call('mmdet_configs.py', config_root / 'nowhere')
    assert 'nowhere contains none of deformable_detr/*.py' in capsys.readouterr().err


def test_memory_compares_a_step_with_and_without_checkpointing(call):
    options = (
        '--size',
        64,
        64,
        '--rounds',
        1,
        '--repeats',
        2,
        '--device',
        'cpu',
        '--format',
        'csv',
        '--each',
    )
    lines = list(csv.reader(io.StringIO(call('memory.py', TINY, *options).split('\n\n')[1])))
    assert [line[0] for line in lines[1:]] == ['nothing', 'backbone', 'encoder', 'decoder', 'all']
    assert lines[1][2::2] == ['100%', '1.00']
    assert all(float(line[1]) > 100 and float(line[3]) > 0 for line in lines[1:])


@pytest.mark.parametrize(
    ('part', 'keys'),
    [('backbone', {'model.backbone.with_cp': True}), ('encoder', {'model.encoder.num_cp': 2})],
)
def test_memory_checkpoints_every_layer_of_a_component(part, keys):
    tool = runpy.run_path(str(ROOT / 'tools/analysis/memory.py'))
    cfg = load_config(TINY)
    cfg.model.encoder.num_layers = 2
    assert tool['checkpointing_options'](cfg, [part]) == keys


def test_padding_compares_two_kinds_of_batches(call, tiny_run):
    options = ('--batch-sizes', 4, '--epochs', 1, '--steps', 1, '--format', 'csv')
    lines = list(csv.reader(io.StringIO(call('padding.py', tiny_run.config, *options))))
    assert [line[:2] for line in lines[1:]] == [['4', 'of the config'], ['4', 'of similar size']]
    of_config, of_similar_size = (float(line[2].rstrip('%')) for line in lines[1:])
    assert 0 < of_similar_size < of_config
    assert all(float(figure) > 0 for line in lines[1:] for figure in line[3:])


def test_data_loading_counts_images_memory_and_the_cache(call, tiny_run):
    options = ('--epochs', 2, '--format', 'csv', '--cfg-options', 'train_dataloader.dataset.cache_mode=True')
    lines = list(csv.reader(io.StringIO(call('data_loading.py', tiny_run.config, *options))))
    files = sum(path.stat().st_size for path in (tiny_run.data_root / 'train2017').iterdir())
    assert [line[:2] for line in lines[1:]] == [['1', '8'], ['2', '8']]
    for line in lines[1:]:
        assert files / 2**20 <= float(line[6]) + 0.05 < files / 2**20 + 0.1
        assert float(line[5]) > 50
