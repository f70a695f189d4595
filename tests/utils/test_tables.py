import csv
import io

from ddetr.utils.tables import render_table

HEADER = ('model', 'n')
ROWS = [('a', '1'), ('b, with comma', '234')]


def test_text():
    assert render_table(HEADER, ROWS, 'text') == (
        'model            n\n'
        'a                1\n'
        'b, with comma  234'
    )  # fmt: skip


def test_markdown():
    assert render_table(HEADER, ROWS, 'markdown') == (
        '| model         |   n |\n'
        '| ------------- | --: |\n'
        '| a             |   1 |\n'
        '| b, with comma | 234 |'
    )  # fmt: skip


def test_csv_reads_back():
    read = list(csv.reader(io.StringIO(render_table(HEADER, ROWS, 'csv'))))
    assert read == [list(HEADER), *map(list, ROWS)]
