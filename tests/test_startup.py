"""Imports at start-up. Times are not tested; docs/benchmarks.md has the figures and the command."""

import sys

import pytest

HEAVY_WITHOUT_TORCH = {'torch', 'numpy', 'mmengine', 'mmcv', 'cv2', 'PIL', 'scipy', 'matplotlib'}
# each costs a quarter of a second or more; mmengine.optim brings in torch.distributed.fsdp, sympy and transformers
HEAVY_BESIDE_TORCH = {
    'torchvision', 'torch._dynamo', 'torch.distributed.fsdp', 'torch.utils.tensorboard', 'transformers', 'sympy',
    'mmengine.optim', 'mmengine.model', 'mmengine.runner', 'mmengine.visualization', 'matplotlib', 'scipy',
    'pycocotools', 'supervision', 'timm', 'onnx', 'ddetr.models',
}  # fmt: skip


def imported_by(run, *arguments):
    lines = run(sys.executable, '-X', 'importtime', *arguments).splitlines()
    return {line.rpartition('|')[2].strip() for line in lines if line.startswith('import time:')}


@pytest.mark.parametrize(
    'command',
    [
        ['-c', 'import ddetr'],
        ['-m', 'ddetr', '--help'],
        ['-m', 'ddetr', 'predict', '--help'],
        ['-m', 'ddetr', 'configs'],
        ['tools/train.py', '--help'],
        ['tools/test.py', '--help'],
        ['demo/image_demo.py', '--help'],
    ],
    ids=' '.join,
)
def test_help_and_lists_import_neither_torch_nor_mmengine(run, command):
    modules = imported_by(run, *command)
    assert 'ddetr' in modules
    assert not modules & HEAVY_WITHOUT_TORCH


def test_importing_the_api_imports_little_beside_torch(run):
    modules = imported_by(run, '-c', 'from ddetr.apis import init_detector, train_detector, check_data')
    assert {'torch', 'ddetr.apis.inference'} <= modules
    assert not modules & HEAVY_BESIDE_TORCH


def test_all_lazily_imported_names_exist():
    import ddetr.engine
    import ddetr.visualization
    import ddetr.weights

    for package in (ddetr.engine, ddetr.visualization, ddetr.weights):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
            package.nothing  # noqa: B018
