import json

import pytest

from ddetr.utils.files import remove_unfinished, write_atomically, write_json


def test_an_interrupted_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / 'folder' / 'a.txt'
    write_atomically(path, lambda unfinished: unfinished.write_text('first'))

    def interrupted(unfinished):
        unfinished.write_text('sec')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_text() == 'first'
    assert list(path.parent.iterdir()) == [path]


def test_json(tmp_path):
    write_json({'a': [1, 2.5]}, tmp_path / 'a.json')
    assert json.loads((tmp_path / 'a.json').read_text()) == {'a': [1, 2.5]}


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / '.epoch_1.pth.77.unfinished').write_text('half')
    (tmp_path / 'epoch_1.pth').write_text('whole')
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']
