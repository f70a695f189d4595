"""Architecture rules: generic files name no detector family, and dependencies point one way."""

import ast
import re

from tests.conftest import ROOT

FAMILY = re.compile(r'(?<!D)DETR|R-?CNN|DINO')  # not DDETR_OPS_ALLOW_FALLBACK
ANATOMY = re.compile(r'bbox_head|roi_head|encoder\.layers|neck\.convs|configs/')
OWN = re.compile(r'models/(detectors|heads|layers)/|/__init__\.py$|analysis/paper_table\.py$')


def test_generic_files_name_no_detector_family():
    for path in sorted(p for part in ('ddetr', 'tools', 'demo') for p in (ROOT / part).rglob('*.py')):
        if not OWN.search(path.as_posix()):
            assert not FAMILY.findall(path.read_text()), path


def test_generic_code_does_not_access_detector_internals():
    for package in ('weights', 'engine', 'apis', 'analysis', 'visualization', 'evaluation'):
        for path in sorted((ROOT / 'ddetr' / package).rglob('*.py')):
            if not OWN.search(path.as_posix()):
                assert not ANATOMY.findall(path.read_text()), path


def test_models_do_not_import_weights():
    allowed = re.compile(r'ddetr\.(registry|structures|utils)\b')
    for path in (ROOT / 'ddetr/weights').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2, path
                assert not (node.module or '').startswith('ddetr') or allowed.match(node.module), path
