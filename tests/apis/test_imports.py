"""What `import ddetr.apis` costs."""

import sys


def test_the_api_is_imported_without_what_only_drawing_evaluation_and_models_need(run):
    heavy = ('torchvision', 'torch._dynamo', 'matplotlib', 'pycocotools', 'scipy')
    code = f'import sys, ddetr.apis; print([name for name in {heavy} if name in sys.modules])'
    assert run(sys.executable, '-c', code).strip().splitlines()[-1] == '[]'
