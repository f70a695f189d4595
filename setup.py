"""Puts configs/ into the wheel; all else is in pyproject.toml.

The op, `ddetr-ops`, is a distribution of its own in ops/. As long as no index has it, install both:
pip install --no-build-isolation -e ./ops -e .
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Put configs/ into the package; an editable install finds it beside the package (utils/shipped_configs.py)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, 'ddetr', 'configs')
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / 'configs', target, ignore=shutil.ignore_patterns('__pycache__'))


setup(cmdclass={'build_py': BuildWithConfigs})
