"""Loading of checkpoints that do not match the model: other variants, other classes, partial files."""

import json
import logging
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from ddetr.registry import MODELS
from ddetr.utils.errors import CheckpointError
from ddetr.weights import load_weights, read_weights, write_weights
from ddetr.weights.convert import convert_state, state_for

DEFORMABLE = 'configs/deformable_detr/deformable-detr{}_r50_16xb2-50e_coco.py'
WIDTH = 32


@pytest.fixture
def build(repo_root):
    """Our variants on a thin ResNet, narrow and shallow: `build('-refine', classes=3)`."""

    def build_variant(
        variant: str = '', classes: int = 80, neck_bias: bool = True, mixed: bool = False
    ) -> nn.Module:
        model = Config.fromfile(repo_root / DEFORMABLE.format(variant)).model
        model.num_queries = 10
        model.backbone.update(depth=18, base_channels=8, init_cfg=None)
        model.neck.in_channels = [64] if 'single' in variant else [16, 32, 64]
        model.neck.out_channels = WIDTH
        model.positional_encoding.num_feats = WIDTH // 2
        model.bbox_head.update(num_classes=classes, embed_dims=WIDTH)
        for part in (model.encoder, model.decoder):
            part.num_layers = 2
            part.layer_cfg.ffn_cfg.update(embed_dims=WIDTH, feedforward_channels=16)
            for key in part.layer_cfg.keys() - {'ffn_cfg', 'norm_cfg'}:
                part.layer_cfg[key].update(embed_dims=WIDTH)
        model.neck.bias = neck_bias
        model.mixed_query_selection = mixed
        return MODELS.build(model)

    return build_variant


def save(model: nn.Module, path, project: str = 'ddetr', **meta):
    """A training checkpoint of `model`, converted to another project's format if one is named."""
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    if project != 'ddetr':
        write_weights(path, read_weights(path), project)
    return path


@pytest.mark.parametrize('project', ['ddetr', 'original'])
@pytest.mark.parametrize(
    ('held', 'built'),
    [
        ('-refine', ''),
        ('', '-refine'),
        ('-refine-twostage', '-refine'),
        ('', '-single-scale'),
        ('-single-scale', ''),
    ],
)
def test_file_of_another_variant_suggests_its_config(project, held, built, build, tmp_path):
    path = save(build(held), tmp_path / 'held.pth', project)
    model = build(built)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(model, path)
    sentence = str(error.value)
    assert sentence.startswith(f'{path} contains Deformable DETR')
    assert DEFORMABLE.format(held) in sentence
    assert '\n' not in sentence
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_number_of_classes_raises_unless_fine_tuned(build, tmp_path):
    path = save(build(classes=80), tmp_path / 'coco.pth')
    with pytest.raises(
        CheckpointError, match=r'80 classes, but the config builds .* 3 classes: use configs/'
    ):
        load_weights(build(classes=3), path)
    path = save(build(classes=3), tmp_path / 'mine.pth')
    with pytest.raises(
        CheckpointError, match=r'coco.py with model.backbone.depth=18 model.bbox_head.num_classes=3'
    ):
        load_weights(build(classes=80), path)


@pytest.mark.parametrize('project', ['ddetr', 'original', 'mmdet'])
def test_fine_tuning_reinitialises_only_the_classification_branches(project, build, tmp_path):
    source = build('-refine-twostage', classes=80)
    for parameter in source.bbox_head.parameters():
        nn.init.normal_(parameter)
    path = save(source, tmp_path / 'coco.pth', project)
    model = build('-refine-twostage', classes=3)
    for branch in model.bbox_head.cls_branches:
        nn.init.constant_(branch.bias, 9.0)
    report = load_weights(model, path, finetune=True)
    anew = {name for name in model.state_dict() if 'cls_branches' in name}
    assert len(anew) == 2 * (2 + 1)  # weight and bias of two decoder layers and of the encoder
    assert set(report.reinitialised) == anew
    assert report.missing == report.unexpected == ()
    assert '3 classes instead of 80' in str(report)
    for name, value in model.state_dict().items():
        if name in anew and name.endswith('bias'):
            assert value.sigmoid().tolist() == pytest.approx([0.01] * 3)  # the focal prior
        elif name not in anew:
            assert torch.equal(value, source.state_dict()[name]), name
    assert read_weights(path).classes is None or report.classes is None


def test_fine_tuning_detr_and_faster_rcnn(repo_root, tmp_path):
    """Softmax classes get no prior bias; class-specific boxes of Faster R-CNN are reinitialised with the classes."""
    for name, fresh in (
        ('detr/detr_r50_8xb2-150e_coco.py', {'bbox_head.fc_cls'}),
        (
            'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            {'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'},
        ),
    ):
        config = Config.fromfile(repo_root / 'configs' / name).model
        config.backbone.update(depth=18, base_channels=8, init_cfg=None)
        config.neck.in_channels = [8, 16, 32, 64][-len(config.neck.in_channels) :]
        path = save(MODELS.build(config), tmp_path / 'coco.pth')
        head = config.bbox_head if 'bbox_head' in config else config.roi_head.bbox_head
        head.num_classes = 4
        report = load_weights(MODELS.build(config), path, finetune=True)
        assert {name.rpartition('.')[0] for name in report.reinitialised} == fresh
        assert report.missing == report.unexpected == ()


@pytest.fixture
def build_detr(repo_root):
    """A narrow DETR: `build_detr(79, sigmoid=False)`."""

    def build_variant(classes: int, sigmoid: bool) -> nn.Module:
        config = Config.fromfile(repo_root / 'configs/detr/detr_r50_8xb2-150e_coco.py').model
        config.backbone.update(depth=18, base_channels=8, init_cfg=None)
        config.neck.in_channels = [64]
        config.bbox_head.num_classes = classes
        if sigmoid:
            config.bbox_head.loss_cls = {'type': 'FocalLoss', 'use_sigmoid': True}
        return MODELS.build(config)

    return build_variant


def test_80_class_rows_are_79_classes_with_softmax_or_80_with_sigmoids(build_detr, tmp_path):
    softmax, sigmoid = build_detr(79, sigmoid=False), build_detr(80, sigmoid=True)
    for model, number in ((softmax, 79), (sigmoid, 80)):
        path = save(model, tmp_path / f'{number}.pth')
        assert read_weights(path).weights.layout.num_classes == 79  # nobody to ask: as in the published files
        assert load_weights(model, path).layout.num_classes == number  # the model is asked
        names = tuple(map(str, range(number)))
        path = save(model, tmp_path / f'named{number}.pth', dataset_meta={'classes': names})
        assert read_weights(path).weights.layout.num_classes == number
        assert load_weights(model, path).classes == names
        write_weights(tmp_path / 'converted.safetensors', read_weights(path, model=model), 'ddetr')
        assert read_weights(tmp_path / 'converted.safetensors').weights.layout.num_classes == number
    with pytest.raises(
        CheckpointError, match=r'80 classes by sigmoid, but the config builds .* 79 classes: use '
    ):
        load_weights(softmax, path)
    with pytest.raises(CheckpointError, match=r'79 classes, but .*: use .*bbox_head.num_classes=79'):
        load_weights(sigmoid, tmp_path / 'named79.pth')
    report = load_weights(sigmoid, tmp_path / 'named79.pth', finetune=True)
    assert report.reinitialised == (
        'bbox_head.fc_cls.weight',
        'bbox_head.fc_cls.bias',
    )  # in spite of their shapes


def test_backbones_without_a_known_depth_are_not_called_resnets(build):
    state = {name.replace('backbone.layer', 'backbone.stage'): t for name, t in build().state_dict().items()}
    layout = convert_state(state).layout
    assert 'Deformable DETR (another backbone), 4 feature levels' in str(layout)
    assert layout.fitting_configs() == ()


def test_resnext_of_50_layers_is_not_resnet_50(build):
    state = build().state_dict()
    state['backbone.layer1.0.conv2.weight'] = state['backbone.layer1.0.conv2.weight'][:, :4]
    layout = convert_state(state).layout
    assert 'another backbone' in str(layout)
    assert layout.suggestion() == ''


def test_classes_travel_with_the_file(build, tmp_path):
    path = save(build(classes=3), tmp_path / 'a.pth', dataset_meta={'classes': ('cat', 'dog', 'owl')})
    assert load_weights(build(classes=3), path).classes == ('cat', 'dog', 'owl')
    for project, out in (('ddetr', 'b.safetensors'), ('mmdet', 'b.pth'), ('hf', 'b')):
        write_weights(tmp_path / out, read_weights(path), project)
        assert read_weights(tmp_path / out).classes == ('cat', 'dog', 'owl'), project
    labels = json.loads((tmp_path / 'b' / 'config.json').read_text())['id2label']
    assert labels == {'0': 'cat', '1': 'dog', '2': 'owl'}


def test_missing_and_unexpected_keys_are_reported_and_allowed_only_on_request(build, tmp_path):
    source, model = build(), build()
    state = source.state_dict()
    del state['encoder.layers.1.norms.0.weight']
    state['mask_head.weight'] = torch.zeros(1)
    state['level_embed'] = torch.zeros(4, 7)
    torch.save({'state_dict': state}, tmp_path / 'part.pth')
    named = r'lacks 1 tensors of the model \(encoder.layers.1.norms.0.weight\); it has 1 unexpected tensors '
    named += r'\(mask_head.weight\); it has different shapes \(level_embed: \(4, 7\) instead of \(4, 32\)\)'
    before = model.level_embed.clone()
    with pytest.raises(CheckpointError, match=named):
        load_weights(model, tmp_path / 'part.pth')
    report = load_weights(model, tmp_path / 'part.pth', allow_partial=True)
    assert report.missing == ('encoder.layers.1.norms.0.weight', 'level_embed')
    assert report.unexpected == ('mask_head.weight',)
    assert torch.equal(model.level_embed, before)
    assert torch.equal(model.query_embedding.weight, source.query_embedding.weight)


def test_one_line_summarises_what_was_loaded(build, tmp_path, monkeypatch):
    path, model, lines = save(build(), tmp_path / 'x.pth', 'original'), build(), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handlers', [handler])
    load_weights(model, path)
    (line,) = lines
    assert re.search(
        r'x.pth: the original Deformable DETR: Deformable DETR \(ResNet-18\), 4 feature levels', line
    )
    weights = [name for name in model.state_dict() if not name.endswith('num_batches_tracked')]
    assert f'{len(weights)} tensors loaded; 91 class rows by COCO id became 80' in line


def test_neck_without_biases_as_in_mmdetection(build, tmp_path):
    without, biased = build(neck_bias=False), build()
    report = load_weights(biased, save(without, tmp_path / 'mmdet.pth'))
    assert 'biases of the neck set to 0, because the file does not contain them' in str(report)
    assert not biased.neck.convs[0].conv.bias.any()
    load_weights(without, save(biased, tmp_path / 'zero.pth'))  # biases of 0 change nothing
    nn.init.ones_(biased.neck.extra_convs[0].conv.bias)
    with pytest.raises(
        CheckpointError,
        match=r'has non-zero biases of the neck, .* set model.neck.bias=True, as in configs/',
    ):
        load_weights(without, save(biased, tmp_path / 'ones.pth'))
    file = read_weights(tmp_path / 'ones.pth')
    assert any('set model.neck.bias=True' in note for note in state_for('mmdet', file.weights, True).notes)


def test_mixed_query_selection_stays_ours(build, tmp_path):
    """No other project has learned queries in two stages: dropping them silently would change the model."""
    mixed = build('-refine-twostage', mixed=True)
    path = save(mixed, tmp_path / 'mixed.pth')
    load_weights(build('-refine-twostage', mixed=True), path)
    with pytest.raises(CheckpointError, match=r'twostage.*with .*model.mixed_query_selection=True'):
        load_weights(build('-refine-twostage'), path)
    for project, out in (('original', 'o.pth'), ('hf', 'h.safetensors'), ('mmdet', 'm.pth')):
        with pytest.raises(CheckpointError, match=r'query_embedding.weight|mixed query selection'):
            write_weights(tmp_path / out, read_weights(path), project)
        assert not (tmp_path / out).exists()


def test_backbone_among_unknown_keys_reports_both(build, tmp_path):
    """As MMDetection 2.x wrote its DETRs: the backbone has today's names, the transformer lies in the head."""
    model = build()
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith('backbone.')}
    torch.save(
        {'state_dict': {**state, 'bbox_head.transformer.level_embeds': torch.zeros(4, 32)}},
        tmp_path / 'a.pth',
    )
    assert read_weights(tmp_path / 'a.pth').weights.unexpected == ('bbox_head.transformer.level_embeds',)
    says = r'contains a ResNet-18 backbone and 1 unknown tensors, such as bbox_head.transformer.level_embeds'
    with pytest.raises(CheckpointError, match=says):
        load_weights(model, tmp_path / 'a.pth')
    torch.save({'state_dict': state}, tmp_path / 'b.pth')
    with pytest.raises(CheckpointError, match=r'contains a ResNet-18 backbone only, .* to load the backbone'):
        load_weights(model, tmp_path / 'b.pth')


def test_torchvisions_faster_rcnn_rows(repo_root):
    """Background moves from the first row to the last, categories are picked by id, for boxes too."""
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = theirs.state_dict()
    state['roi_heads.box_predictor.cls_score.bias'] = torch.arange(91.0)
    state['roi_heads.box_predictor.bbox_pred.bias'] = torch.arange(364.0)
    ours = convert_state(state)
    assert ours.unexpected == ()
    picked = ours.state['roi_head.bbox_head.fc_cls.bias'].tolist()
    assert (picked[:3], picked[11], picked[-2:]) == ([1, 2, 3], 13, [90, 0])  # 12 is no category
    boxes = ours.state['roi_head.bbox_head.fc_reg.bias'].view(-1, 4)
    assert (boxes[:, 0] / 4).tolist() == picked[:-1]
    config = Config.fromfile(repo_root / 'configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    config.backbone.init_cfg = None
    load_weights(MODELS.build(config), 'torchvision.pth', {'state_dict': state})
    again = state_for('torchvision', ours, coco=True).state
    for name in again:
        if 'box_predictor' not in name:
            assert torch.equal(again[name], state[name]), name


def test_pretrained_backbones(tmp_path, monkeypatch, repo_root):
    """From torch's cache by name, from a file of a backbone or of a detector; what does not fit is an error."""
    theirs = resnet18()
    nn.init.normal_(theirs.bn1.weight)
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(theirs.state_dict(), cache / 'resnet18-f37072fd.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    config = {'type': 'ResNet', 'depth': 18, 'init_cfg': {'type': 'Pretrained'}}

    def started_from(checkpoint: str) -> nn.Module:
        backbone = MODELS.build({**config, 'init_cfg': {'type': 'Pretrained', 'checkpoint': checkpoint}})
        backbone.init_weights()
        return backbone

    for name in ('torchvision://resnet18', str(cache / 'resnet18-f37072fd.pth')):
        for key, value in started_from(name).state_dict().items():
            assert torch.equal(value, theirs.state_dict()[key]), key
    detector = tmp_path / 'detector.pth'
    torch.save({f'backbone.{key}': value for key, value in theirs.state_dict().items()}, detector)
    assert torch.equal(started_from(str(detector)).bn1.weight, theirs.bn1.weight)
    torch.save({'layer4.0.conv1.weight': torch.zeros(1), 'conv1.weight': torch.zeros(1)}, tmp_path / 'no.pth')
    with pytest.raises(
        CheckpointError, match=r'no.pth does not match ResNet \(init_cfg=Pretrained\): 100 of'
    ):
        started_from(str(tmp_path / 'no.pth'))


def test_error_without_network_tells_which_file_to_put_where(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError('no network')

    monkeypatch.setattr('socket.getaddrinfo', refuse)
    monkeypatch.setattr('socket.socket.connect', refuse)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    init = {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet18'}
    backbone = MODELS.build({'type': 'ResNet', 'depth': 18, 'init_cfg': init})
    with pytest.raises(CheckpointError) as error:
        backbone.init_weights()
    assert 'https://download.pytorch.org/models/resnet18-f37072fd.pth could not be downloaded' in str(
        error.value
    )
    assert f'save it as {tmp_path}/hub/checkpoints/resnet18-f37072fd.pth' in str(error.value)
