"""Install `ddetr_ops` by itself: pip install --no-build-isolation ./ops"""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))
from op_build import BuildOps, extensions

setup(
    name='ddetr-ops',
    version='1.0.0',
    description='Multi-scale deformable attention for PyTorch: CPU and CUDA, one wheel for many versions',
    license='Apache-2.0',
    python_requires='>=3.10',
    install_requires=['torch>=2.10'],
    packages=['ddetr_ops', 'ddetr_ops.compat'],
    ext_modules=extensions(),
    cmdclass={'build_ext': BuildOps},
    options={'bdist_wheel': {'py_limited_api': 'cp310'}},
    zip_safe=False,
)
