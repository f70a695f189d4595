"""Install ddetr and ddetr_ops: pip install --no-build-isolation -e .

Without build isolation, so that the op is compiled against the PyTorch that it will run with (see ops/op_build.py).
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / 'ops'))
from op_build import BuildOps, extensions  # noqa: E402


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


version = re.search(r"__version__ = '(.+)'", (ROOT / 'ddetr' / '__init__.py').read_text())
readme = ROOT / 'README.md'

setup(
    name='ddetr',
    version=version[1] if version else '0',
    description='The Deformable DETR family of object detectors as an MMDetection-style toolbox',
    long_description=readme.read_text() if readme.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require={
        'tests': requirements('tests'),
        'optional': requirements('optional'),
        'timm': [line for line in requirements('optional') if line.startswith('timm')],
    },
    packages=[*find_packages(include=['ddetr', 'ddetr.*']), 'ddetr_ops', 'ddetr_ops.compat'],
    package_dir={'ddetr_ops': 'ops/ddetr_ops'},
    ext_modules=extensions(),
    cmdclass={'build_ext': BuildOps},
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},
    zip_safe=False,
)
