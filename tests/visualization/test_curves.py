import json
import re
import runpy

import cv2
import pytest

from ddetr.utils import InputError
from ddetr.visualization.curves import draw_curves, read_scalars


@pytest.fixture
def work_dir(tmp_path):
    """Two runs, the second resumed at step 2."""
    runs = {'20250101_000000': [(1, 9.0), (2, 8.0), (3, 7.5)], '20250102_000000': [(3, 7.0), (4, 6.0)]}
    for run, losses in runs.items():
        folder = tmp_path / run / 'vis_data'
        folder.mkdir(parents=True)
        lines = [json.dumps({'loss': loss, 'iter': step, 'step': step}) for step, loss in losses]
        (folder / 'scalars.json').write_text(
            '\n'.join([*lines, json.dumps({'coco/bbox_mAP': 0.25, 'step': 1})])
        )
    return tmp_path


def test_a_resumed_runs_values_replace_the_earlier_ones(work_dir):
    scalars = read_scalars(work_dir)
    assert scalars['loss'] == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]
    assert scalars['coco/bbox_mAP'] == [(1, 0.25)]


def test_picture(work_dir):
    picture = cv2.imread(str(draw_curves(work_dir, ['loss', 'coco/bbox_mAP'], work_dir / 'new' / 'a.png')))
    assert picture.shape[:2] == (2 * 390, 1050)  # 2.6 x 7 inches each at 150 dpi


def test_axis_states_the_unit_of_a_step(work_dir):
    out = work_dir / 'a.svg'
    for key, unit in (('loss', 'iteration'), ('coco/bbox_mAP', 'epoch')):
        draw_curves(work_dir, [key], out)
        assert f'<!-- {unit} -->' in out.read_text()
    log = work_dir / '20250102_000000' / 'vis_data' / 'scalars.json'
    lines = [
        {'loss': 1.0, 'iter': 50, 'step': 50},
        {'coco/bbox_mAP': 0.3, 'step': 60},
    ]  # validated by iteration
    log.write_text('\n'.join(map(json.dumps, lines)))
    draw_curves(work_dir, ['coco/bbox_mAP'], out)
    assert '<!-- iteration -->' in out.read_text()


def test_scalars_that_were_not_logged_raise(work_dir, tmp_path_factory):
    with pytest.raises(InputError, match=r"no scalar 'los'; it has coco/bbox_mAP, loss"):
        draw_curves(work_dir, ['los'], work_dir / 'a.png')
    with pytest.raises(InputError, match='work directory'):
        read_scalars(tmp_path_factory.mktemp('empty'))


def test_runs_are_compared_from_the_command_line(work_dir, tmp_path_factory, repo_root, monkeypatch, capsys):
    other = tmp_path_factory.mktemp('other')
    log = other / 'run' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps({'loss': 10.0 - step, 'step': step}) for step in range(1, 6)))
    picture = other / 'new' / 'a.svg'

    def run(*args):
        monkeypatch.setattr('sys.argv', ['compare_curves.py', *map(str, args), '--out', str(picture)])
        runpy.run_path(str(repo_root / 'tools/analysis/compare_curves.py'), run_name='__main__')

    run(f'DETR={work_dir}', other, '--key', 'loss')
    assert capsys.readouterr().out.strip() == str(picture)
    drawn = picture.read_text()
    assert all(f'<!-- {text} -->' in drawn for text in ('DETR', other.name, 'loss', 'iteration'))
    points = re.findall(r'<path d="(M [^"]*)" clip-path', drawn)
    assert [path.count('L') + 1 for path in points][-2:] == [4, 5]  # the runs' curves, after the grid

    for runs, sentence in (
        ((work_dir, other), 'has no scalar'),
        ((f'A={work_dir}', f'A={other}'), 'the same name'),
    ):
        with pytest.raises(SystemExit, match='2'):
            run(*runs)
        assert sentence in capsys.readouterr().err
