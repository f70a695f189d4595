"""The commands, run in separate processes like by a user."""

import json
import os
import re
import sys

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr.visualization.curves import read_scalars


def _ap(output: str) -> list[str]:
    """The AP column of every COCO table that was printed."""
    return re.findall(r'Average Precision  \(AP\) @\[ IoU=0\.50:0\.95 \| area=   all .* = (.*)', output)


def _best_ap_line(output: str) -> float:
    return float(re.findall(r'coco/bbox_mAP: (\S+)', output)[-1])


def test_training_shows_progress_with_eta_and_writes_checkpoints(tiny_run):
    assert re.search(r'Epoch\(train\) \[1\]\[1/4\]  loss .*ETA \d:\d\d:\d\d', tiny_run.output)
    assert len(_ap(tiny_run.output)) == 2  # one table an epoch
    assert 'paramwise_options' not in tiny_run.output
    content = torch.load(tiny_run.checkpoint, weights_only=False)
    assert content['meta']['iter'] == 8
    assert len(content['meta']['dataset_meta']['classes']) == 6


def test_testing_agrees_with_training_and_with_pycocotools(tiny_run, run, tmp_path):
    out, shown = tmp_path / 'found.json', tmp_path / 'shown'
    output = run(
        sys.executable, 'tools/test.py', tiny_run.config, tiny_run.checkpoint, '--work-dir', tmp_path,
        '--out', out, '--show-dir', shown, '--cfg-options', 'test_evaluator.classwise=True',
    )  # fmt: skip
    assert _best_ap_line(output) == _best_ap_line(tiny_run.output)
    assert re.search(r'circle +\S+ +\S+', output)  # the table per class
    truth = COCO(str(tiny_run.data_root / 'annotations' / 'instances_val2017.json'))
    evaluation = COCOeval(truth, truth.loadRes(str(out)), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(_best_ap_line(output), abs=5e-5)
    assert sorted(path.name for path in shown.iterdir()) == [f'{i:012d}.jpg' for i in range(1, 5)]


def test_resuming_continues_at_the_right_iteration(tiny_run, run, tmp_path):
    """After 2 epochs of 4 iterations, only the third epoch runs, with the scheduled learning rate."""
    work_dir = tmp_path / 'resumed'
    work_dir.mkdir()
    (work_dir / 'epoch_2.pth').write_bytes(tiny_run.checkpoint.read_bytes())
    (work_dir / 'last_checkpoint').write_text('/somewhere/else/epoch_2.pth')  # the folder was moved
    output = run(
        sys.executable, 'tools/train.py', tiny_run.config, '--work-dir', work_dir, '--resume',
        '--cfg-options', 'train_cfg.max_epochs=3',
    )  # fmt: skip
    assert re.findall(r'Epoch\(train\) \[(\d+)\]\[(\d)/4\]', output) == [('3', str(i)) for i in (1, 2, 3, 4)]
    assert re.findall(r' lr (\S+)', output) == ['2.0e-05'] * 4  # 2e-4, divided at epoch 1
    content = torch.load(work_dir / 'epoch_3.pth', weights_only=False)
    assert content['meta']['iter'] == 12
    assert content['optimizer']['state'][0]['step'] == 12


def test_two_runs_are_identical(tiny_run, run, tmp_path):
    run(
        sys.executable, 'tools/train.py', tiny_run.config, '--work-dir', tmp_path,
        '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9',
    )  # fmt: skip
    losses = read_scalars(tmp_path)['loss']
    assert losses == read_scalars(tiny_run.work_dir)['loss'][:4]
    assert len({loss for _, loss in losses}) == 4


def test_two_processes_without_a_gpu(tiny_run, run, tmp_path):
    output = run(
        'bash', 'tools/dist_train.sh', tiny_run.config, '2', '--work-dir', tmp_path, '--auto-scale-lr',
        '--cfg-options', 'train_cfg.max_epochs=1',
    )  # fmt: skip
    # 8 images, 2 a batch, 2 processes: 2 iterations; 2e-4 is meant for batches of 32, these are of 4
    assert re.findall(r'Epoch\(train\) \[1\]\[(\d)/2\]', output) == ['1', '2']
    assert re.findall(r' lr (\S+)', output)[0] == '2.5e-05'
    checkpoint = tmp_path / 'epoch_1.pth'
    assert torch.load(checkpoint, weights_only=False)['meta']['iter'] == 2
    tested = run(
        'bash', 'tools/dist_test.sh', tiny_run.config, checkpoint, '2', '--work-dir', tmp_path / 'test'
    )
    assert _best_ap_line(tested) == _best_ap_line(output)


def test_slurm_starts_torchrun_on_each_machine(tiny_run, run, tmp_path):
    """With stand-ins for the cluster's commands: `srun` notes its options and runs the task right here."""
    (tmp_path / 'srun').write_text(
        '#!/usr/bin/env bash\n'
        f'while [ "$1" != bash ]; do echo "$1" >> {tmp_path}/options; shift; done\n'
        'SLURM_NNODES=1 SLURM_NODEID=0 SLURM_JOB_ID=7 SLURM_JOB_NODELIST=localhost exec "$@"\n'
    )
    (tmp_path / 'scontrol').write_text('#!/usr/bin/env bash\necho localhost\n')
    for name in ('srun', 'scontrol'):
        (tmp_path / name).chmod(0o755)
    output = run(
        'bash', 'tools/slurm_test.sh', 'gpus', 'job', tiny_run.config, tiny_run.checkpoint,
        '--work-dir', tmp_path / 'test',
        PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS_PER_NODE='1',
    )  # fmt: skip
    assert _best_ap_line(output) == _best_ap_line(tiny_run.output)
    options = (tmp_path / 'options').read_text().split()
    assert options[options.index('-p') + 1] == 'gpus'
    assert options[options.index('--gres') + 1] == 'gpu:1'


@pytest.mark.parametrize(
    ('env', 'arguments', 'asked'),
    [
        ({'GPUS': '16'}, ['work_dirs/run', '--amp'], ('2', 'gpu:8', '8', '--work-dir work_dirs/run --amp')),
        ({'GPUS': '4'}, [], ('1', 'gpu:4', '4', '')),
        ({'GPUS': '4', 'GPUS_PER_NODE': '2'}, ['--amp'], ('2', 'gpu:2', '2', '--amp')),
        ({'NNODES': '3', 'GPUS_PER_NODE': '2'}, ['--work-dir', 'x'], ('3', 'gpu:2', '2', '--work-dir x')),
    ],
)
def test_slurm_script_accepts_mmdetections_arguments(run, tmp_path, env, arguments, asked):
    (tmp_path / 'srun').write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {tmp_path}/said\n')
    (tmp_path / 'srun').chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    run('bash', 'tools/slurm_train.sh', 'gpus', 'job', 'config.py', *arguments, PATH=path, **env)
    said = (tmp_path / 'said').read_text().split('\n')
    nodes, gres, processes, options = asked
    assert said[said.index('--nodes') + 1] == nodes
    assert said[said.index('--gres') + 1] == gres
    assert ' '.join(said).rstrip().endswith(f'config.py {processes} {options}'.rstrip())


def test_slurm_rejects_nodes_of_different_size(run):
    output = run('bash', 'tools/slurm_train.sh', 'gpus', 'job', 'config.py', expect=2, GPUS='12')
    assert 'GPUS=12 is not a multiple of GPUS_PER_NODE=8' in output


def test_image_demo(tiny_run, run, tmp_path):
    output = run(
        sys.executable, 'demo/image_demo.py', tiny_run.data_root / 'val2017', tiny_run.config, tiny_run.checkpoint,
        '--out-dir', tmp_path, '--score-thr', '0',
    )  # fmt: skip
    assert '288 detections in 4 images' in output
    found = json.loads((tmp_path / '000000000001.jpg.json').read_text())['detections']
    assert len(found) == 72  # 12 queries, 6 classes
    assert (tmp_path / '000000000001.jpg').exists()


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['tools/train.py', 'nothing.py'], 'config nothing.py does not exist'),
        (['tools/train.py', '{config}', '--cfg-options', 'model.num_querys=3'], 'did you mean num_queries'),
        (['tools/test.py', '{config}', 'nothing.pth'], 'checkpoint nothing.pth does not exist'),
    ],
)
def test_wrong_input_gives_one_clear_error_and_leaves_no_files(tiny_run, run, tmp_path, arguments, says):
    work_dir = tmp_path / 'work'
    command = [argument.format(config=tiny_run.config) for argument in arguments]
    output = run(sys.executable, *command, '--work-dir', work_dir, expect=2)
    assert says in output
    assert 'Traceback' not in output
    assert not work_dir.exists()


def test_training_on_a_dataset_without_objects_gives_one_clear_error(tiny_run, run, tmp_path):
    ann_file = tmp_path / 'empty.json'
    train = json.loads((tiny_run.data_root / 'annotations' / 'instances_train2017.json').read_text())
    ann_file.write_text(json.dumps({**train, 'annotations': []}))
    output = run(
        sys.executable, 'tools/train.py', tiny_run.config, '--work-dir', tmp_path / 'work',
        '--cfg-options', f'train_dataloader.dataset.ann_file={ann_file}', expect=2,
    )  # fmt: skip
    assert 'none of the 8 images has a box of the given classes: check ann_file' in output
    assert 'Traceback' not in output
