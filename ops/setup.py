"""The compiled part of `ddetr_ops`; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from op_build import BuildOps, PlatformWheel, extensions

setup(ext_modules=extensions(), cmdclass={'build_ext': BuildOps, 'bdist_wheel': PlatformWheel})
