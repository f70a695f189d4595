"""Install ddetr: pip install --no-build-isolation -e ./ops -e .

The op, `ddetr-ops`, is a package of its own in ops/, which is installed with it as long as no index has it.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


class BuildWithConfigs(build_py):
    """Put configs/ into the package; an editable install finds it beside the package (utils/shipped_configs.py)."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, 'ddetr', 'configs')
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / 'configs', target, ignore=shutil.ignore_patterns('__pycache__'))


def optional(*packages: str) -> list[str]:
    return [line for line in requirements('optional') if line.startswith(packages)]


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
    install_requires=[*requirements('runtime'), 'ddetr-ops>=1.0'],
    extras_require={
        'tests': requirements('tests'),
        'optional': requirements('optional'),
        'timm': optional('timm'),
        'lite0': optional('timm', 'efficientnet-lite0'),
        'supervision': optional('supervision'),
    },
    packages=find_packages(include=['ddetr', 'ddetr.*']),
    package_data={'ddetr.analysis.error_report': ['report.html'], 'ddetr.visualization': ['training.html']},
    entry_points={'console_scripts': ['ddetr = ddetr.cli:main']},
    cmdclass={'build_py': BuildWithConfigs},
)
