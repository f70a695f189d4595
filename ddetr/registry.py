"""Registries that map the `type` keys of config files to components.

Each registry is a child of mmengine's registry of the same kind, so configs can also use components from mmengine
and mmcv (optimizers, hooks, `Resize`, ...). The scope is `ddetr`. Types with MMDetection's prefix (`mmdet.ResNet`)
resolve to the components in this package, unless the real mmdet is imported in the same process.
"""

from mmengine.registry import DATA_SAMPLERS as ENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as ENGINE_DATASETS
from mmengine.registry import HOOKS as ENGINE_HOOKS
from mmengine.registry import LOG_PROCESSORS as ENGINE_LOG_PROCESSORS
from mmengine.registry import LOOPS as ENGINE_LOOPS
from mmengine.registry import METRICS as ENGINE_METRICS
from mmengine.registry import MODELS as ENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPERS as ENGINE_OPTIM_WRAPPERS
from mmengine.registry import TASK_UTILS as ENGINE_TASK_UTILS
from mmengine.registry import TRANSFORMS as ENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as ENGINE_VISUALIZERS
from mmengine.registry import WEIGHT_INITIALIZERS as ENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

SCOPE = 'ddetr'
ALIAS = 'mmdet'


def _child(parent: Registry, location: str) -> Registry:
    """Child registry of `parent` that imports the module `location` on first use."""
    registry = Registry(parent.name, parent=parent, scope=SCOPE, locations=[location])
    parent.children.setdefault(ALIAS, registry)
    return registry


MODELS = _child(ENGINE_MODELS, 'ddetr.models')
TASK_UTILS = _child(ENGINE_TASK_UTILS, 'ddetr.models')
DATASETS = _child(ENGINE_DATASETS, 'ddetr.datasets')
DATA_SAMPLERS = _child(ENGINE_DATA_SAMPLERS, 'ddetr.datasets')
TRANSFORMS = _child(ENGINE_TRANSFORMS, 'ddetr.datasets')
METRICS = _child(ENGINE_METRICS, 'ddetr.evaluation')
HOOKS = _child(ENGINE_HOOKS, 'ddetr.engine.components')
LOG_PROCESSORS = _child(ENGINE_LOG_PROCESSORS, 'ddetr.engine.components')
LOOPS = _child(ENGINE_LOOPS, 'ddetr.engine.components')
OPTIM_WRAPPERS = _child(ENGINE_OPTIM_WRAPPERS, 'ddetr.engine.components')
VISUALIZERS = _child(ENGINE_VISUALIZERS, 'ddetr.visualization.local_visualizer')
WEIGHT_INITIALIZERS = _child(ENGINE_WEIGHT_INITIALIZERS, 'ddetr.weights.pretrained')
