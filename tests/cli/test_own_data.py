"""The README's commands for custom data, run verbatim, but for a shorter training, on an excerpt of their dataset."""

import json
import re
import shlex
import shutil
import sys

import pytest

from tests.conftest import ROOT

SHORT = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'model.num_queries=30']
IMAGES = {'train': 6, 'val': 2, 'test': 2}


@pytest.fixture
def excerpt(bccd_root, tmp_path):
    """The first images of each split of BCCD, in Pascal VOC's folders."""
    root = tmp_path / 'data' / 'bccd'
    for split, count in IMAGES.items():
        names = (bccd_root / 'ImageSets' / 'Main' / f'{split}.txt').read_text().split()[:count]
        for folder, suffix in (('JPEGImages', '.jpg'), ('Annotations', '.xml')):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copy(bccd_root / folder / (name + suffix), root / folder)
        (root / 'ImageSets' / 'Main').mkdir(parents=True, exist_ok=True)
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('\n'.join(names))
    return root


def readme_commands():
    """The `ddetr` commands of the README's block that trains on a folder."""
    blocks = re.findall(r'```bash\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (block,) = (block for block in blocks if 'ddetr train' in block)
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith('ddetr ')]


@pytest.mark.usefixtures('excerpt')
def test_the_readmes_commands_fine_tune_on_a_folder(run, tmp_path):
    commands = readme_commands()
    assert [command[1] for command in commands] == ['check', 'train', 'test', 'predict']
    said = {}
    for _, name, *arguments in commands:
        short = SHORT if name == 'train' else []
        said[name] = run(sys.executable, '-m', 'ddetr', name, *arguments, *short, cwd=tmp_path)
    assert 'ImageSets/Main/train.txt' in said['check']
    assert 'WBC' in said['train']
    assert re.search(r'bbox_mAP: \d\.\d+', said['test'])
    written = {path.suffix for path in tmp_path.rglob('outputs/**/*') if path.is_file()}
    assert written & {'.jpg', '.png'}, written
    assert written >= {'.json', '.csv'}, written
    for found in tmp_path.rglob('outputs/**/*.json'):
        json.loads(found.read_text())
