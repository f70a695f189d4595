"""The `ddetr` command, run in separate processes like by a user."""

import json
import re
import sys

import pytest
import torch

from ddetr.apis import load_config
from ddetr.cli import COMMANDS, main
from ddetr.utils.shipped_configs import config_root, list_configs

DDETR = (sys.executable, '-m', 'ddetr')


def test_each_command_has_a_one_line_description():
    for command in COMMANDS:
        assert (command.__doc__ or '').split('\n')[0].endswith('.')


def test_configs_are_listed_printed_and_copied(tmp_path, capsys):
    main(['configs'])
    listed = capsys.readouterr().out.split()
    files = {path.stem for path in config_root().rglob('*.py') if '_base_' not in path.parts}
    assert {name for name in listed if not name.endswith(':')} == files == set(list_configs())
    target = tmp_path / 'mine.py'
    main(
        ['configs', 'detr_r50_8xb2-150e_coco', '--copy', str(target), '--cfg-options', 'model.num_queries=7']
    )
    original, copy = load_config('detr_r50_8xb2-150e_coco'), load_config(target)
    assert copy.model.pop('num_queries') == 7
    assert original.model.pop('num_queries') == 100
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler', 'default_hooks'):
        assert copy[key] == original[key]
    assert 'data_root' not in copy  # it is filled in: changing it here would change nothing
    with pytest.raises(SystemExit, match='2'):
        main(['configs', 'detr_r50_8xb2-150e_coco', '--copy', str(target)])
    assert 'use a .py file that does not exist yet' in capsys.readouterr().err


@pytest.mark.parametrize(
    'name',
    ['detr_shapes', 'detr_shapes.py', 'quickstart/detr_shapes', 'configs/quickstart/detr_shapes.py'],
)
def test_configs_by_name_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).model.type == 'DETR'


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['train', 'detr_shape'], 'config detr_shape does not exist: .*; did you mean detr_shapes'),
        (['train', 'elsewhere/detr_shapes.py'], 'does not exist'),
        (['train', 'detr_shapes', '--data', 'nowhere'], 'nowhere does not exist'),
        (['test', 'nothing.pth'], 'checkpoint nothing.pth does not exist'),
        (['predict', 'nothing.jpg', '--checkpoint', 'a.pth'], 'nothing.jpg does not exist'),
        (['predict', '.', '--checkpoint', 'a.pth'], 'contains no images'),
        (['check', 'nowhere'], 'nowhere does not exist'),
    ],
)
def test_wrong_input_gives_one_clear_error_and_leaves_no_files(
    tmp_path, monkeypatch, capsys, arguments, says
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match='2'):
        main(arguments)
    error = capsys.readouterr().err
    assert re.search(says, error)
    assert 'Traceback' not in error
    assert not list(tmp_path.iterdir())


def test_training_needs_only_a_folder_of_data(tiny_run, run, tmp_path):
    """Convert, train, test and predict: classes come from the data, then from the checkpoint alone."""
    data, work_dir, out = tmp_path / 'yolo', tmp_path / 'work', tmp_path / 'out'
    main(['convert-data', str(tiny_run.data_root), '--to', 'yolo', '--out', str(data)])
    config = tmp_path / 'other_classes.py'
    config.write_text(f'_base_ = {str(tiny_run.config)!r}\nmodel = dict(bbox_head=dict(num_classes=91))\n')
    trained = run(
        *DDETR, 'train', config, '--data', data, '--work-dir', work_dir, '--cfg-options',
        'train_cfg.max_epochs=1',
    )  # fmt: skip
    assert 'is in the format of YOLO' in trained
    assert '8 images in train, 4 images in val; 6 classes' in trained
    assert f'ddetr predict IMAGES --checkpoint {work_dir}' in trained
    tested = run(*DDETR, 'test', work_dir, '--work-dir', tmp_path / 'test')
    assert 'coco/bbox_mAP: ' in tested
    predicted = run(
        *DDETR, 'predict', f'{data}/**/val/*.jpg', '--checkpoint', work_dir, '--out-dir', out, '--score-thr', '0',
        '--classes', 'ring', '--formats', 'json', 'csv',
    )  # fmt: skip
    assert '48 detections in 4 images' in predicted  # 12 queries
    (path, *_) = out.glob('*.json')
    assert {row['class'] for row in json.loads(path.read_text())['detections']} == {'ring'}


def test_predicting_on_a_broken_image_ends_with_status_2(tiny_run, tmp_path, capsys):
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'no image')
    inputs = [str(tiny_run.data_root / 'val2017'), str(broken)]
    with pytest.raises(SystemExit, match='2'):
        main(
            ['predict', *inputs, '--checkpoint', str(tiny_run.checkpoint), '--out-dir', str(tmp_path / 'out')]
        )
    printed = capsys.readouterr()
    assert f'image {broken} cannot be decoded' in printed.out
    assert 'error: 1 inputs were skipped' in printed.err
    assert len(list((tmp_path / 'out').glob('*.jpg'))) == 4


def test_category_ids_of_the_annotation_file_reach_the_checkpoint(tiny_run):
    annotations = json.loads((tiny_run.data_root / 'annotations/instances_val2017.json').read_text())
    ids = {category['name']: category['id'] for category in annotations['categories']}
    meta = torch.load(tiny_run.checkpoint, weights_only=False)['meta']
    assert dict(zip(meta['dataset_meta']['classes'], meta['category_ids'], strict=True)) == ids


def test_an_installed_package_has_the_configs(run, tmp_path):
    """Contents of the wheel, used without the repository."""
    run(sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', tmp_path)
    code = 'import ddetr, ddetr.cli; print(ddetr.__file__); ddetr.cli.main(["configs", "dino_shapes"])'
    # `-c` puts the working folder, which is the repository, first
    code = f'import sys; sys.path[0] = {str(tmp_path)!r}; {code}'
    printed = run(sys.executable, '-c', code)
    assert str(tmp_path) in printed.splitlines()[0]
    assert "type='DINO'" in printed  # from its bases
