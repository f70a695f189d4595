"""Traced functions: on a synthetic package with a known result, and on a training step."""

import importlib
import sys

import pytest

import ddetr
from ddetr.analysis.batches import random_batch
from ddetr.analysis.building import build_detector
from ddetr.analysis.flow import trace_functions
from ddetr.engine.config import load_config
from tests.conftest import ROOT

OUTER = """
from .parts.inner import Part, double

def run():
    [double(i) for i in range(3)]
    return sum(Part(i)() for i in {1, 2}) + (lambda: 0)()

def never():
    return 1
"""
INNER = """
def double(x):
    return 2 * x

class Part:
    def __init__(self, x):
        self.x = x

    def __call__(self):
        return {k: double(v) for k, v in [(0, self.x)]}[0]
"""


def test_traces_the_functions_of_one_package(tmp_path, monkeypatch):
    (tmp_path / 'traced/parts').mkdir(parents=True)
    (tmp_path / 'traced/__init__.py').write_text(OUTER)
    (tmp_path / 'traced/parts/__init__.py').write_text('')
    (tmp_path / 'traced/parts/inner.py').write_text(INNER)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module('traced')
    before = sys.getprofile()
    found = trace_functions(lambda: package.run(), package)
    assert sys.getprofile() is before
    named = {file: [name.split('.')[-1] for name in names] for file, names in found.items()}
    assert named == {'__init__.py': ['run', '<lambda>'], 'parts/inner.py': ['double', '__init__', '__call__']}


@pytest.mark.parametrize('two_stage', [False, True])
def test_training_step_calls_few_functions(two_stage):
    """For comparison, MMDetection's step calls 64 functions in 29 files, the original code 41 in 10."""
    cfg = load_config(
        ROOT / 'tests/configs/tiny_shapes.py',
        {'model.with_box_refine': two_stage, 'model.as_two_stage': two_stage},
    )
    model = build_detector(cfg)
    batch = model.data_preprocessor(random_batch(2, (96, 128), 6), training=True)
    found = trace_functions(lambda: model(**batch, mode='loss'), ddetr)
    assert 'models/detectors/deformable_detr.py' in found
    assert len(found) < 12, sorted(found)
    assert sum(map(len, found.values())) < 45, found
