"""pip install ./ops/dropin: `import MultiScaleDeformableAttention` finds ddetr_ops, without a call."""

from setuptools import setup

setup(
    name='ddetr-ops-dropin',
    version='1.0.0',
    description="The original Deformable DETR's extension module, by ddetr_ops",
    license='Apache-2.0',
    python_requires='>=3.10',
    install_requires=['ddetr-ops'],
    py_modules=['MultiScaleDeformableAttention'],
)
