"""The C++ example, compiled, and run on a package of AOTInductor."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from ddetr.apis import DetInferencer
from ddetr.deployment import ExportOptions
from ddetr.deployment.targets import aoti
from tests.conftest import ROOT, run_command

from .toy import INFO, Toy

LIBRARY = ROOT / 'ops/ddetr_ops/_C.so'  # of the op, as the packages of real detectors need it


@pytest.mark.slow
def test_cpp_example_gives_the_same_detections_as_python(tmp_path):
    if shutil.which(os.environ.get('CXX', 'g++')) is None:
        pytest.skip('there is no C++ compiler')
    path, program = tmp_path / 'toy.pt2', tmp_path / 'detect'
    example = torch.rand(1, 3, 96, 128), torch.tensor([[96, 128]])
    aoti.write(Toy().eval(), example, ExportOptions(batch=1), path)
    aoti.annotate(path, replace(INFO, target='aoti', opset=None, op='kernel', batch=1))
    run_command('bash', ROOT / 'tools/deployment/cpp/build.sh', program, PYTHON=sys.executable)
    library = [LIBRARY] if LIBRARY.exists() else []
    detector, numbers = DetInferencer(path), np.random.default_rng(0)
    for size in ((128, 96), (90, 200)):  # a size that is kept, and one that is resized
        image = cv2.GaussianBlur(numbers.integers(0, 256, (*size, 3), dtype=np.uint8), (9, 9), 0)
        cv2.imwrite(str(tmp_path / 'image.ppm'), image)
        truth = detector(tmp_path / 'image.ppm').pred_instances
        lines = run_command(program, path, tmp_path / 'image.ppm', '0', *library).splitlines()
        rows = [line.rsplit(' ', 5) for line in lines]  # "class" score x1 y1 x2 y2
        found = np.array([row[1:] for row in rows], dtype=np.float64)
        np.testing.assert_allclose(found[:, 0], truth.scores, atol=1e-4)
        np.testing.assert_allclose(found[:, 1:], truth.bboxes, atol=0.05)
        assert [row[0] for row in rows] == [f'"{INFO.classes[label]}"' for label in truth.labels]
    for arguments, message in (
        (['absent.pt2', 'image.ppm'], 'absent.pt2'),
        ([path, 'absent.ppm'], 'image absent.ppm cannot be read'),
        ([], 'detect MODEL.pt2 IMAGE'),
    ):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
