import argparse

import pytest
import torch
from torch.utils.data import DataLoader

from ddetr.utils import InputError
from ddetr.utils.cli import add_cfg_options, run_cli


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


def test_input_errors_in_loader_workers_are_one_line(capsys):
    with pytest.raises(SystemExit):
        run_cli(lambda: list(DataLoader(_Broken(), num_workers=1)))
    assert capsys.readouterr().err == 'error: image a.jpg does not exist\n'


def test_errors_of_the_code_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 / 0)


def _options(*pairs):
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    return parser.parse_args(['--cfg-options', *pairs] if pairs else []).cfg_options


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('100', 100),
        ('-1e-4', -1e-4),
        ('true', True),
        ('None', None),
        ('work_dirs/a-b/epoch_1.pth', 'work_dirs/a-b/epoch_1.pth'),
        ('a=b', 'a=b'),
        ('1,2', [1, 2]),
        ('(8, 11)', (8, 11)),
        ('(8)', (8,)),
        ('[cat,dog]', ['cat', 'dog']),
        ('[/data/a.json,/data/b.json]', ['/data/a.json', '/data/b.json']),
        ("['traffic light','x=1']", ['traffic light', 'x=1']),
        ("[dict(type='EMAHook', momentum=-0.5)]", [{'type': 'EMAHook', 'momentum': -0.5}]),
        ('[dict(type=EMAHook,x=[true,(1,2)])]', [{'type': 'EMAHook', 'x': [True, (1, 2)]}]),
        ("{'a.b': dict(lr_mult=0.1)}", {'a.b': {'lr_mult': 0.1}}),
        ('dict()', {}),
    ],
)  # fmt: skip
def test_config_options_are_words_numbers_lists_and_dicts(text, value):
    assert _options('other=1', f'key.0.inner={text}') == {'other': 1, 'key.0.inner': value}
    assert _options() == {}


@pytest.mark.parametrize(
    'pair',
    [
        'key',
        "key=[dict(type='EMAHook']",
        "key=[dict(type=__import__('os').getcwd())]",
        "key=dict(print('executed'))",
        'key=dict(**a)',
        'key={[]: 1}',
        'key=' + '[' * 5000 + ']' * 5000,
    ],
)
def test_invalid_config_options_give_one_clear_error_and_execute_nothing(pair, capsys):
    with pytest.raises(SystemExit, match='2'):
        _options(pair)
    out, err = capsys.readouterr()
    assert out == ''
    assert f'error: --cfg-options {pair}: write KEY=VALUE' in err
