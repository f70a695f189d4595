import pytest
import torch
from torch.utils.data import DataLoader

from ddetr.utils import InputError
from ddetr.utils.cli import run_cli


class _Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError('image a.jpg does not exist')


def _raise(error):
    raise error


def test_input_errors_are_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: _raise(InputError('image a.jpg does not exist')))
    assert stop.value.code == 2
    assert capsys.readouterr().err == 'error: image a.jpg does not exist\n'


def test_input_errors_of_a_loaders_worker_too(capsys):
    with pytest.raises(SystemExit):
        run_cli(lambda: list(DataLoader(_Broken(), num_workers=1)))
    assert capsys.readouterr().err == 'error: image a.jpg does not exist\n'


def test_errors_of_the_code_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 / 0)
