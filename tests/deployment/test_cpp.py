"""The C++ example, compiled and run on a package of AOTInductor."""

import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ddetr.apis import DetInferencer
from tests.conftest import ROOT, run_command

BUILD = ROOT / 'tools/deployment/cpp/build.sh'


@pytest.mark.slow
def test_the_example_in_cpp_detects_what_python_detects(export_case, tmp_path):
    if shutil.which(os.environ.get('CXX', 'g++')) is None:
        pytest.skip('there is no C++ compiler')
    run_command('bash', BUILD, tmp_path / 'detect', PYTHON=sys.executable)
    path = export_case('plain', 'aoti').exported.path
    numbers = np.random.default_rng(0)
    for size in ((128, 96), (90, 200)):  # a size that is kept, and one that is resized
        image = cv2.GaussianBlur(numbers.integers(0, 256, (*size, 3), dtype=np.uint8), (9, 9), 0)
        cv2.imwrite(str(tmp_path / 'image.ppm'), image)
        expected = DetInferencer(path)(tmp_path / 'image.ppm').pred_instances
        output = run_command(
            tmp_path / 'detect', path, tmp_path / 'image.ppm', '0', ROOT / 'ops/ddetr_ops/_C.so'
        )
        rows = [line.rsplit(' ', 5) for line in output.splitlines()]  # "class" score x1 y1 x2 y2
        numbers_of = np.array([row[1:] for row in rows], dtype=np.float64)
        np.testing.assert_allclose(numbers_of[:, 0], expected.scores, atol=1e-5)
        np.testing.assert_allclose(numbers_of[:, 1:], expected.bboxes, atol=0.05)
        assert [row[0] for row in rows] == [f'"{"abcdef"[label]}"' for label in expected.labels]
    for arguments, message in (
        (['absent.pt2', 'image.ppm'], 'absent.pt2'),
        ([str(path), 'absent.ppm'], 'image absent.ppm cannot be read'),
    ):
        done = subprocess.run([tmp_path / 'detect', *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
