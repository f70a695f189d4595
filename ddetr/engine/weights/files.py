"""Weight files and folders, read into our names and written under others'."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from ...datasets.coco import COCO_CLASSES
from ...utils.errors import CheckpointError
from ...utils.files import write_atomically
from ..checkpoint import read_checkpoint
from .classes import COCO_IDS, NUM_COCO_IDS
from .convert import UNTOLD, Converted, Origin, convert_state, state_for
from .huggingface import USUAL, Style, Unseen, config_json, style_for
from .layout import DETR
from .rules import State

# The key of our files' meta (as JSON, since safetensors holds strings only) for `Origin`.
ORIGIN_KEY = 'ddetr_origin'
# How the names of `Converted.aside` begin in our files, which keep them beside the weights.
ASIDE = 'ddetr_aside.'
# Under which keys the projects keep the tensors in what they give to torch.save; a bare dict of them is fine too.
_STATE_KEYS = ('state_dict', 'model', 'model_state_dict')
_HF_FILES = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin')


class WeightsFile(NamedTuple):
    """A file's weights under our names, and the names of their classes where the file tells."""

    path: Path
    weights: Converted
    classes: tuple[str, ...] | None
    meta: dict[str, Any]


def read_weights(path: str | Path, coco_ids: bool = True) -> WeightsFile:
    """Read a weight file of any format that we know, without running any code from it.

    Args:
        path: `.pth`, `.safetensors`, or a folder that Hugging Face's `save_pretrained` wrote.
        coco_ids: see `convert_state`.

    Raises:
        CheckpointError: no such file, a damaged or malicious one, or one of no known format.
    """
    return interpret(read_content(path), Path(path), coco_ids)


def read_content(path: str | Path) -> dict[str, Any]:
    """As `read_checkpoint`, and of a folder that `save_pretrained` wrote."""
    path = Path(path).expanduser()
    return _read_folder(path) if path.is_dir() else read_checkpoint(path)


def interpret(content: Mapping[str, Any], path: Path, coco_ids: bool = True) -> WeightsFile:
    """As `read_weights`, of what was read already."""
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    inner = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), Mapping)), content)
    state = {
        name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not state:
        raise CheckpointError(
            f'{path} holds no weights: its keys are {", ".join(map(str, list(content)[:8]))}.'
        )
    aside = {name.removeprefix(ASIDE): state.pop(name) for name in list(state) if name.startswith(ASIDE)}
    origin = _origin_of(meta, path)._replace(aside=aside)
    try:
        weights = convert_state(state, coco_ids, origin, str(path))
    except (IndexError, RuntimeError) as error:  # tensors of shapes that no model has
        raise CheckpointError(f'{path}: its names are known, but not their shapes ({error}).') from error
    return WeightsFile(path, weights, _classes_of(meta, path, weights), meta)


def write_weights(
    out: str | Path, file: WeightsFile, project: str, unseen: Unseen = USUAL, allow_partial: bool = False
) -> Converted:
    """Write weights in a project's format, whole or not at all.

    Args:
        out: `.pth` (or `.pt`, `.bin`), `.safetensors`, or for `hf` a folder, which gets a `config.json` too.
        file: from `read_weights`.
        project: `ddetr`, `original`, `mmdet` or `hf`.
        unseen: for Hugging Face's `config.json`.
        allow_partial: leave out tensors that the project has no place for.

    Returns:
        What was written.

    Raises:
        CheckpointError: the project has no such model, or `out` is no such place; nothing is written then.
    """
    out, source = Path(out), file.weights
    if project == 'hf' and (out.is_file() or out.suffix in ('.pth', '.pt', '.bin')):
        raise CheckpointError(
            f'{out}: what Hugging Face reads is a folder (or a .safetensors file); name one.'
        )
    if project != 'hf' and (out.is_dir() or not out.suffix):
        raise CheckpointError(f'{out}: name the file to write, such as {out}.pth.')
    coco = file.classes in (None, COCO_CLASSES) and source.layout.num_classes == len(COCO_CLASSES)
    if project == 'hf' and source.project != 'hf' and not source.style.hf_resnet:
        source = source._replace(style=source.style._replace(hf_resnet=style_for(source.state).hf_resnet))
    written = state_for(project, source, coco, allow_partial)
    if project == 'hf':
        folder = out.parent if out.suffix == '.safetensors' else out
        target = out if out.suffix == '.safetensors' else out / _HF_FILES[0]
        _check_unseen(source, unseen)
        config = config_json(source.layout, source.state, _hf_names(file, coco), unseen)
        save_weights(target, written.state, {'format': 'pt'})
        text = json.dumps(config, indent=2)
        write_atomically(folder / 'config.json', lambda path: _write_text(path, text))
        return written
    aside = {ASIDE + name: rows for name, rows in source.aside.items()} if project == 'ddetr' else {}
    save_weights(
        out, {**written.state, **aside}, meta_of(file), key='model' if project == 'original' else 'state_dict'
    )
    return written


def save_weights(out: Path, state: State, meta: Mapping[str, str], key: str = 'state_dict') -> None:
    """Write tensors and texts about them, atomically; in a `.safetensors` file repeated tensors are stored apart."""
    if out.suffix == '.safetensors':
        apart = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        # not save_file: nobody but its owner may read what that writes
        write: Callable[[Path], object] = lambda path: path.write_bytes(save(apart, dict(meta)))  # noqa: E731
    else:
        write = lambda path: torch.save({key: state, 'meta': dict(meta)}, path)  # noqa: E731
    write_atomically(out, write)


def meta_of(file: WeightsFile) -> dict[str, str]:
    """What a file of ours says about its weights: texts only, so that every container holds them."""
    origin = {
        'with_box_refine': file.weights.layout.with_box_refine,
        'style': file.weights.style._asdict(),
    }
    meta = {ORIGIN_KEY: json.dumps(origin)}
    if file.classes:
        meta['classes'] = json.dumps(file.classes)
    return meta


def _read_folder(path: Path) -> dict[str, Any]:
    name = next((name for name in _HF_FILES if (path / name).is_file()), None)
    if name is None:
        raise CheckpointError(f'the folder {path} holds none of {", ".join(_HF_FILES)}: name a weight file.')
    if not name.endswith('.index.json'):
        return read_checkpoint(path / name)
    try:
        shards = sorted(set(json.loads((path / name).read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{path / name} is no index of weight files ({error!r}).') from error
    state: State = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith('.safetensors'):
            raise CheckpointError(
                f'{path / name} names {shard!r}, which is no .safetensors file in its folder.'
            )
        state |= read_checkpoint(path / shard)['state_dict']
    return {'state_dict': state}


def _origin_of(meta: Mapping[str, Any], path: Path) -> Origin:
    text = meta.get(ORIGIN_KEY)
    if not isinstance(text, str):
        return UNTOLD
    try:
        origin = json.loads(text)
        return Origin(origin['with_box_refine'], Style(**origin['style']))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f'{path}: its meta entry {ORIGIN_KEY} is damaged ({error!r}).') from error


def _classes_of(meta: Mapping[str, Any], path: Path, weights: Converted) -> tuple[str, ...] | None:
    """The class names that a checkpoint carries, if there are as many as classes."""
    names: Any = meta.get('classes')
    if isinstance(names, str):
        names = _json_or_none(names)
    dataset = meta.get('dataset_meta')
    if isinstance(dataset, Mapping):
        names = dataset.get('classes', dataset.get('CLASSES'))
    config = (path if path.is_dir() else path.parent) / 'config.json'
    if weights.project == 'hf' and names is None and config.is_file():
        labels = (_json_or_none(config.read_text()) or {}).get('id2label', {})
        names = [labels.get(str(i), '') for i in range(len(labels))]
        if len(names) in (NUM_COCO_IDS, NUM_COCO_IDS + 1) and weights.layout.num_classes == len(COCO_IDS):
            names = COCO_CLASSES
        elif any(name.startswith('LABEL_') for name in names):  # Hugging Face's stand-ins
            names = None
    if names is None and any('by COCO id' in note for note in weights.notes):
        names = COCO_CLASSES
    # a DETR of sigmoids has no row for no-object, so its layout counts a class too few
    if isinstance(names, Sequence) and len(names) - weights.layout.num_classes in (
        0,
        weights.layout.family == DETR,
    ):
        return tuple(map(str, names))
    return None


def _hf_names(file: WeightsFile, coco: bool) -> list[str]:
    if coco:
        by_id = dict(zip(COCO_IDS, COCO_CLASSES, strict=True))
        return [by_id.get(i, f'N/A {i}') for i in range(NUM_COCO_IDS)]
    return list(file.classes or (f'LABEL_{i}' for i in range(file.weights.layout.num_classes)))


def _check_unseen(source: Converted, unseen: Unseen) -> None:
    """Whether heads and points fit the deformable attention's width."""
    weight = source.state.get('encoder.layers.0.self_attn.attention_weights.weight')
    if weight is None:
        return
    expected = unseen.num_heads * unseen.num_points * source.layout.levels
    if weight.shape[0] != expected:
        raise CheckpointError(
            f'the attention has {weight.shape[0]} weights a query, which are not {unseen.num_heads} heads x '
            f'{unseen.num_points} points x {source.layout.levels} levels: give the config with --config.'
        )


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
