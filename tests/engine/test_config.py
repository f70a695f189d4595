from pathlib import Path

import pytest

from ddetr.engine.config import check_config, explain_build_errors, load_config
from ddetr.registry import MODELS
from ddetr.utils import ConfigError

TINY = Path(__file__).parents[1] / 'configs' / 'tiny_shapes.py'


def test_options_and_defaults():
    cfg = load_config(TINY, {'model.num_queries': 5, 'train_dataloader.dataset.pipeline.2.prob': 0.25})
    assert cfg.model.num_queries == 5
    assert cfg.train_dataloader.dataset.pipeline[2].prob == 0.25
    assert cfg.default_scope == 'ddetr'
    assert cfg.randomness.seed == 0
    check_config(cfg)


def test_mmdet_scope_maps_to_ddetr_and_seeds_are_kept(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text("default_scope = 'mmdet'\nrandomness = dict(seed=3)")
    cfg = load_config(path)
    assert cfg.default_scope == 'ddetr'
    assert cfg.randomness.seed == 3
    assert load_config(path, {'randomness.seed': 4}).randomness.seed == 4


@pytest.mark.parametrize(
    ('option', 'says'),
    [
        ('modell.num_queries', 'did you mean model?'),
        ('data_root', 'only a variable of the config file'),
        ('model.encoder.num_layerz', "did you mean 'num_layers'?"),
        ('default_hooks.chekpoint.interval', "did you mean 'checkpoint'?"),
        ('train_dataloader.dataset.pipeline.9.prob', 'has 5 items'),
    ],
)
def test_options_without_effect_raise(option, says):
    with pytest.raises(ConfigError) as error:
        load_config(TINY, {option: 1})
    assert option in str(error.value)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ('option', 'value', 'says'),
    [
        (
            'model.type',
            'DeformabelDETR',
            "model.type='DeformabelDETR' is not registered; did you mean",
        ),
        (
            'model.num_querys',
            3,
            'model.num_querys: DeformableDETR has no such key; did you mean num_queries',
        ),
        ('model.backbone.depht', 18, 'model.backbone.depht: ResNet has no such key; did you mean depth?'),
        ('model.bbox_head.loss_cls.type', 'FokalLoss', 'did you mean FocalLoss'),
        ('model.train_cfg.assigner.match_costs.1.weihgt', 3, 'did you mean weight?'),
        ('train_dataloader.dataset.pipeline.2.type', 'RandomFlop', 'did you mean RandomFlip'),
        (
            'train_dataloader.dataset.pipeline.4.keys',
            1,
            'PackDetInputs has no such key; did you mean meta_keys?',
        ),
        ('train_dataloader.sampler.type', 'DefaultSamplr', 'did you mean DefaultSampler?'),
        ('val_evaluator.metrik', 'bbox', 'did you mean metric'),
        ('optim_wrapper.optimizer.type', 'AdanW', 'did you mean AdamW'),
        ('optim_wrapper.optimizer.lrr', 1, 'AdamW has no such key; did you mean lr?'),
        ('param_scheduler.0.gama', 1, 'MultiStepLR has no such key; did you mean gamma?'),
        ('train_cfg.max_epoch', 1, 'EpochBasedTrainLoop has no such key; did you mean max_epochs?'),
        ('visualizer.type', 'DetVisualizer', 'did you mean Visualizer or DetLocalVisualizer?'),
        ('custom_hooks', [{'type': 'EMAHok'}], "custom_hooks.0.type='EMAHok'"),
    ],
)
def test_unknown_types_and_keys_suggest_the_closest_name(option, value, says):
    cfg = load_config(TINY)
    cfg.merge_from_dict({option: value})
    with pytest.raises(ConfigError) as error:
        check_config(cfg)
    assert says in str(error.value)


def test_misspelt_top_level_key_raises(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text(f"_base_ = {str(TINY)!r}\noptim_wraper = dict(type='OptimWrapper')")
    with pytest.raises(ConfigError, match="unknown config key 'optim_wraper'; did you mean 'optim_wrapper'"):
        check_config(load_config(path))


def test_missing_component_is_reported_before_unknown_keys():
    cfg = load_config(TINY)
    cfg.merge_from_dict({'model.backbone.depht': 18, 'model.bbox_head.type': 'FCOSHead'})
    with pytest.raises(ConfigError, match=r"model\.bbox_head\.type='FCOSHead' is not registered"):
        check_config(cfg)


@pytest.mark.parametrize('name', ['deformable_detr', 'quickstart'])
def test_our_configs_pass(repo_root, name):
    for path in sorted((repo_root / 'configs' / name).glob('*.py')):
        check_config(load_config(path))


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        (None, 'does not exist'),
        ('model = dict(', 'cannot be read'),
        ("_base_ = './nothing.py'", 'nothing.py'),
        (f'_base_ = {str(TINY)!r}\nmodel = dict(neck=dict(in_channels=dict(a=1)))', 'cannot inherit'),
    ],
)
def test_files_that_cannot_be_read(tmp_path, text, says):
    path = tmp_path / 'a.py'
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_build_errors_become_one_clear_message():
    def encoder(num_layers):
        return num_layers

    with (
        pytest.raises(ConfigError, match="unexpected keyword argument 'num_layerz': correct or remove"),
        explain_build_errors(),
    ):
        encoder(num_layerz=3)
    needs = "ChannelMapper needs 'in_channels' and 'out_channels': add"
    with pytest.raises(ConfigError, match=needs), explain_build_errors():
        MODELS.build({'type': 'ChannelMapper'})
    with pytest.raises(TypeError, match='unsupported operand'), explain_build_errors():
        encoder(None + 1)  # an error of the code stays what it is


def test_unknown_average_types_raise():
    hook = {'type': 'EMAHook', 'ema_type': 'ExpMomentumEma'}
    with pytest.raises(ConfigError) as error:
        check_config(load_config(TINY, {'custom_hooks': [hook]}))
    says = "custom_hooks.0.ema_type='ExpMomentumEma' is not registered; did you mean ExpMomentumEMA"
    assert says in str(error.value)
    for known in ('ExpMomentumEMA', 'ExponentialMovingAverage', 'StochasticWeightAverage'):
        check_config(load_config(TINY, {'custom_hooks': [{**hook, 'ema_type': known}]}))
