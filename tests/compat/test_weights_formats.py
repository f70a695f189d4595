"""All published checkpoint layouts: loaded into our models and written back."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file
from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.utils.errors import CheckpointError
from ddetr.weights import load_weights, read_weights, write_weights
from ddetr.weights.convert import convert_state

# file -> the config of ours that it belongs to. In every list 91 rows are COCO's category ids 0 to 90.
DEFORMABLE, REFINE, TWO_STAGE, SINGLE, DC5 = (
    f'configs/deformable_detr/deformable-detr{name}_r50_16xb2-50e_coco.py'
    for name in ('', '-refine', '-refine-twostage', '-single-scale', '-single-scale-dc5')
)
DINO4, DINO5 = (f'configs/dino/dino-{scales}scale_r50_8xb2-12e_coco.py' for scales in (4, 5))
DETR, DETR_DC5 = 'configs/detr/detr_r50_8xb2-150e_coco.py', 'configs/detr/detr-dc5_r50_64xb1-500e_coco.py'
FILES = {
    'official_r50_deformable_detr': DEFORMABLE,
    'official_r50_deformable_detr_plus_iterative_bbox_refinement': REFINE,
    'official_r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage': TWO_STAGE,
    'official_r50_deformable_detr_single_scale': SINGLE,
    'official_r50_deformable_detr_single_scale_dc5': DC5,
    'official_detr_r50': DETR,
    'official_dino_4scale_r50': DINO4,
    'official_dino_5scale_r50': DINO5,
    'official_detr_r50_dc5': DETR_DC5,
    'mmdet_deformable-detr_r50_16xb2-50e_coco': DEFORMABLE,
    'mmdet_deformable-detr-refine_r50_16xb2-50e_coco': REFINE,
    'mmdet_deformable-detr-refine-twostage_r50_16xb2-50e_coco': TWO_STAGE,
    'mmdet_detr_r50_8xb2-150e_coco': DETR,
    'mmdet_faster-rcnn_r50_fpn_1x_coco': 'configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'hf_deformable_detr': DEFORMABLE,
    'hf_deformable_detr_with_box_refine': REFINE,
    'hf_deformable_detr_with_box_refine_two_stage': TWO_STAGE,
    'hf_deformable_detr_single_scale': SINGLE,
    'hf_deformable_detr_single_scale_dc5': DC5,
    'hf_detr_r50': DETR,
}
NO_CATEGORY = [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]  # COCO's paper lists 91 categories, its files 80


def random_state(shapes: dict[str, list[int]], refined: bool) -> dict[str, Tensor]:
    """Random tensors of these shapes; those that are one tensor in the project's own model are equal.

    Large ones repeat a random first column, stored once: the files are small, and so is the test's time.
    """
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in shapes.items():
        if name.endswith('num_batches_tracked'):
            state[name] = torch.tensor(7)
        elif math.prod(shape) > 100_000:
            state[name] = torch.randn(shape[0], *[1] * (len(shape) - 1), generator=generator).expand(shape)
        else:
            state[name] = torch.randn(shape, generator=generator)
    for name in state:
        first = name.replace('transformer.decoder.', '')  # the decoder holds the same branches once more
        if not refined:
            first = re.sub(r'(class_embed|bbox_embed|cls_branches|reg_branches)\.\d+\.', r'\1.0.', first)
        if first in state and state[first].shape == state[name].shape:
            state[name] = state[first]
    return state


@pytest.fixture(scope='module')
def model_of(repo_root):
    """Models by config, built once and reloaded with different weights."""
    built: dict[str, nn.Module] = {}

    def build(config: str) -> nn.Module:
        if config not in built:
            if not (repo_root / config).exists():
                pytest.skip(f'{config} is not there yet')
            built.clear()  # one at a time: they are large
            built[config] = MODELS.build(Config.fromfile(repo_root / config).model)
        return built[config]

    return build


@pytest.mark.parametrize('name', sorted(FILES, key=lambda name: FILES[name]))
def test_file_loads_completely_and_is_written_back_bit_for_bit(name, checkpoint_lists, model_of, tmp_path):
    model = model_of(FILES[name])
    shapes = json.loads((checkpoint_lists / f'{name}.json').read_text())
    refined = 'refine' in name
    state = random_state(shapes, refined)
    project = name.split('_')[0].replace('official', 'original')
    path = tmp_path / 'weights.pth'
    torch.save({'model' if project == 'original' else 'state_dict': state}, path)

    report = load_weights(model, path)
    assert report.missing == report.unexpected == ()
    assert FILES[name] in report.layout.fitting_configs()

    write_weights(tmp_path / 'ours.pth', read_weights(path), 'ddetr')
    back = tmp_path / ('back' if project == 'hf' else 'back.pth')
    write_weights(back, read_weights(tmp_path / 'ours.pth'), project)
    file = back / 'model.safetensors' if project == 'hf' else back
    written = read_raw(file)
    assert written.keys() == state.keys()
    for key, tensor in written.items():
        check_rows(key, tensor, state[key])


def read_raw(path: Path) -> dict[str, Tensor]:
    if path.suffix == '.safetensors':
        return load_file(path)
    content = torch.load(path, weights_only=True)
    return content.get('model') or content['state_dict']


def check_rows(key: str, written: Tensor, read: Tensor) -> None:
    """Equal bits, but for the rows of ids that are no category."""
    if read.dim() and len(read) in (91, 92):
        # row 0 of the two-stage encoder's branch rates the proposals: it is kept, beside all categories
        unused = NO_CATEGORY[1:] if 'class_embed.6.' in key else NO_CATEGORY
        assert key.endswith('bias') or not written[unused].any(), key
        assert key.endswith('weight') or written[unused].sigmoid().max() == 0, key
        kept = [i for i in range(len(read)) if i not in unused]
        written, read = written[kept], read[kept]
    assert torch.equal(written, read), key


# How Hugging Face's scripts rename the original projects' weights, which its own tests hold against their outputs.
TO_HF = {
    'official_r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage': [
        (r'^transformer\.', ''),
        (r'(decoder\..*)norm1', r'\1encoder_attn_layer_norm'),
        (r'(decoder\..*)norm2', r'\1self_attn_layer_norm'),
        (r'norm3', 'final_layer_norm'),
        (r'norm1', 'self_attn_layer_norm'),
        (r'norm2', 'final_layer_norm'),
        (r'cross_attn', 'encoder_attn'),
        (r'linear(\d)', r'fc\1'),
        (r'backbone\.0\.body', 'backbone.conv_encoder.model'),
        (r'^(?!class_embed|bbox_embed)', 'model.'),
    ],
    'official_detr_r50': [
        (r'^transformer\.', ''),
        (r'(decoder\..*)norm2', r'\1encoder_attn_layer_norm'),
        (r'norm1', 'self_attn_layer_norm'),
        (r'norm2|norm3', 'final_layer_norm'),
        (r'decoder\.norm', 'decoder.layernorm'),
        (r'multihead_attn', 'encoder_attn'),
        (r'linear(\d)', r'fc\1'),
        (r'query_embed', 'query_position_embeddings'),
        (r'input_proj', 'input_projection'),
        (r'class_embed', 'class_labels_classifier'),
        (r'bbox_embed', 'bbox_predictor'),
        (r'backbone\.0\.body', 'backbone.conv_encoder.model'),
        (r'^(?!class_|bbox_)', 'model.'),
    ],
}


@pytest.mark.parametrize('name', TO_HF)
def test_original_and_hugging_face_names_lead_to_the_same_place(name, checkpoint_lists):
    """The original's code is not here to compare outputs with; Hugging Face's model, compared elsewhere, is."""
    original = random_state(json.loads((checkpoint_lists / f'{name}.json').read_text()), refined=True)
    theirs = {}
    for key, tensor in original.items():
        for pattern, replacement in TO_HF[name]:
            key = re.sub(pattern, replacement, key)
        if 'in_proj_' in key:
            for part, piece in zip('qkv', tensor.chunk(3), strict=True):
                theirs[key.replace('in_proj_', f'{part}_proj.')] = piece
        else:
            theirs[key] = tensor
    ours, via_theirs = convert_state(original), convert_state(theirs)
    assert (ours.project, via_theirs.project) == ('original', 'hf')
    assert ours.unexpected == via_theirs.unexpected == ()
    assert ours.state.keys() == via_theirs.state.keys()
    for key, tensor in ours.state.items():
        assert torch.equal(tensor, via_theirs.state[key]), key


def test_class_rows_follow_cocos_category_ids(coco_root, checkpoint_lists, tmp_path):
    """Row `id` of the file becomes row `label` of ours, by the dataset's own annotation file."""
    annotations = next(coco_root.glob('annotations/instances_*.json'))
    categories = json.loads(annotations.read_text())['categories']
    ids = sorted(category['id'] for category in categories)
    shapes = json.loads((checkpoint_lists / 'official_detr_r50.json').read_text())
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state['class_embed.bias'] = torch.arange(92.0)
    torch.save(state, tmp_path / 'detr.pth')
    file = read_weights(tmp_path / 'detr.pth')
    assert file.weights.state['bbox_head.fc_cls.bias'].tolist() == [*ids, 91]  # no-object comes last
    assert list(file.classes) == [c['name'] for c in sorted(categories, key=lambda c: c['id'])]


def test_unknown_names_raise(tmp_path):
    torch.save({'state_dict': {'stem.weight': torch.zeros(1)}}, tmp_path / 'other.pth')
    with pytest.raises(
        CheckpointError, match=r"other.pth: its 1 tensor names, such as 'stem.weight', match no known"
    ):
        read_weights(tmp_path / 'other.pth')
    torch.save({'epoch': 3, 'args': {}}, tmp_path / 'empty.pth')
    with pytest.raises(CheckpointError, match=r'empty.pth contains no weights: its keys are epoch, args'):
        read_weights(tmp_path / 'empty.pth')
