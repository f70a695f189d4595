"""Read checkpoints from any supported project with ddetr names, and write them in other formats."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ddetr.utils.coco_classes import COCO_CLASSES, COCO_IDS, NUM_COCO_IDS
from ddetr.utils.errors import CheckpointError
from ddetr.utils.files import write_atomically

from .checkpoint import HF_FILES, read_checkpoint
from .convert import Converted, Origin, convert_state, state_for
from .family import family_of, recognise
from .huggingface import Style
from .layout import Layout
from .rules import State

# Metadata key in ddetr files for hints and style of `Origin`, as JSON because safetensors stores only strings.
ORIGIN_KEY = 'ddetr_origin'
# Name prefix of `Converted.aside` in ddetr files, which store it with the weights.
ASIDE = 'ddetr_aside.'


class WeightsFile(NamedTuple):
    """Weights of a file with ddetr names, and class names if the file has them."""

    path: Path
    weights: Converted
    classes: tuple[str, ...] | None
    meta: dict[str, Any]


def read_weights(
    path: str | Path,
    content: Mapping[str, Any] | None = None,
    model: nn.Module | None = None,
    strict: bool = True,
) -> WeightsFile:
    """Read a checkpoint in any supported format. Loading never executes code.

    Args:
        path: See `read_checkpoint`.
        content: Content of `path`, if already read.
        model: Target model. It resolves ambiguities, and names of unknown families are assumed to be its own.
        strict: Whether to raise an error for names of unknown families instead of keeping them; only without a model.

    Raises:
        CheckpointError: The file is missing, damaged, malicious or in an unknown format.
    """
    content = read_checkpoint(path) if content is None else content
    path = Path(path)
    meta = meta if isinstance(meta := content.get('meta'), dict) else {}
    state = tensors_in(content, path)
    if all(name.startswith('module.') for name in state):  # saved inside the wrapper for distributed training
        state = {name.removeprefix('module.'): tensor for name, tensor in state.items()}
    aside = {name.removeprefix(ASIDE): state.pop(name) for name in list(state) if name.startswith(ASIDE)}
    names, own_number = _class_names(meta), getattr(model, 'num_classes', None)
    told = {'num_classes': own_number if names is None else len(names)}
    origin = _origin_of(meta, path, told)._replace(aside=aside)
    families = [family] if (family := family_of(model)) else []
    # if most names are this model's, they are not another project's
    its_own = model is not None and not family and 2 * len(model.state_dict().keys() & state) > len(state)
    if its_own or ((model is not None or not strict) and not recognise(state, *families)):
        weights = Converted(state, Layout(len(names or ())), 'ddetr', 'unknown model family', None)
    else:
        # keep all rows if the model has as many classes as COCO has category ids
        coco_ids = own_number not in (NUM_COCO_IDS - 1, NUM_COCO_IDS)
        try:
            weights = convert_state(state, coco_ids, origin, str(path), tuple(families))
        except (IndexError, RuntimeError) as error:  # known names with impossible shapes
            raise CheckpointError(
                f'{path}: tensor names are known, but their shapes are invalid ({error}).'
            ) from error
    return WeightsFile(path, weights, _classes_of(names, path, weights), meta)


def tensors_in(
    content: Mapping[str, Any],
    path: str | Path,
    keys: Sequence[str] = ('state_dict', 'model', 'model_state_dict'),
) -> State:
    """Tensors of a checkpoint by name, from the first existing key of `keys` or the top level.

    Raises:
        CheckpointError: There are no tensors.
    """
    inner = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    state = {name: t for name, t in inner.items() if isinstance(name, str) and isinstance(t, Tensor)}
    if not state:
        raise CheckpointError(
            f'{path} contains no weights: its keys are {", ".join(map(str, list(content)[:8]))}.'
        )
    return state


def write_weights(
    out: str | Path,
    file: WeightsFile,
    project: str,
    model_cfg: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
) -> Converted:
    """Write weights atomically in the format of a project, and return what was written.

    Args:
        out: `.pth` (or `.pt`, `.bin`) or `.safetensors` file; for `hf` a folder, which also gets a `config.json`.
        file: Result of `read_weights`.
        project: `ddetr`, `original`, `mmdet` or `hf`.
        model_cfg: `model` in the config of the weights, for fields of Hugging Face's `config.json` that the weights
            do not determine. Default: the values of the published models.
        allow_partial: Whether to drop tensors that have no counterpart in the project.

    Raises:
        CheckpointError: The project does not support the model, or `out` is not a valid target; nothing is written.
    """
    out, source = Path(out), file.weights
    if project == 'hf' and (out.is_file() or out.suffix in ('.pth', '.pt', '.bin')):
        raise CheckpointError(
            f'{out}: Hugging Face checkpoints are folders (or .safetensors files). Choose one of these.'
        )
    if project != 'hf' and (out.is_dir() or not out.suffix):
        raise CheckpointError(f'{out}: pass an output file, such as {out}.pth.')
    coco = file.classes in (None, COCO_CLASSES) and source.layout.num_classes == len(COCO_CLASSES)
    written = state_for(project, source, coco, allow_partial)
    if project == 'hf':
        target = out if out.suffix == '.safetensors' else out / HF_FILES[0]
        config = json.dumps(_config_json(file, coco, model_cfg), indent=2)
        save_weights(target, written.state, {'format': 'pt'})
        write_atomically(target.parent / 'config.json', lambda path: path.write_text(config))
        return written
    aside = {ASIDE + name: rows for name, rows in source.aside.items()} if project == 'ddetr' else {}
    key = 'model' if project == 'original' else 'state_dict'
    save_weights(out, {**written.state, **aside}, meta_of(file), key)
    return written


def save_weights(out: Path, state: State, meta: Mapping[str, str], key: str = 'state_dict') -> None:
    """Write tensors and string metadata atomically; `.safetensors` files store shared tensors separately."""
    if out.suffix == '.safetensors':
        apart = {name: tensor.contiguous().clone() for name, tensor in state.items()}
        # not save_file, which makes files readable only by their owner
        write_atomically(out, lambda path: path.write_bytes(save(apart, dict(meta))))
    else:
        write_atomically(out, lambda path: torch.save({key: state, 'meta': dict(meta)}, path))


def meta_of(file: WeightsFile) -> dict[str, str]:
    """Metadata of a checkpoint, restricted to strings, which every container format can store."""
    weights = file.weights
    hints = weights.family.hints_from(weights.layout) if weights.family else {}
    origin = {ORIGIN_KEY: json.dumps({**hints, 'style': weights.style._asdict()})}
    return {**origin, 'classes': json.dumps(file.classes)} if file.classes else origin


def _origin_of(meta: Mapping[str, Any], path: Path, told: Mapping[str, Any]) -> Origin:
    """Origin stored in a ddetr file; it takes precedence over class names and the model."""
    text = meta.get(ORIGIN_KEY)
    if not isinstance(text, str):
        return Origin(told)
    try:
        kept = json.loads(text)
        hints = {name: value for name, value in kept.items() if isinstance(value, bool | int)}
        return Origin({**told, **hints}, Style(**kept['style']))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{path}: its metadata entry {ORIGIN_KEY} is damaged ({error!r}).') from error


def _class_names(meta: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in the metadata of a checkpoint."""
    names, dataset = meta.get('classes'), meta.get('dataset_meta')
    if isinstance(names, str):
        with suppress(ValueError):
            names = json.loads(names)
    if isinstance(dataset, Mapping):
        names = dataset.get('classes', dataset.get('CLASSES'))
    return tuple(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) else None


def _classes_of(names: tuple[str, ...] | None, path: Path, weights: Converted) -> tuple[str, ...] | None:
    """Class names of a checkpoint, if their number matches the class rows."""
    config = (path if path.is_dir() else path.parent) / 'config.json'
    if weights.project == 'hf' and names is None and config.is_file():
        labels: dict[str, str] = {}
        with suppress(ValueError, AttributeError):
            labels = json.loads(config.read_text()).get('id2label', labels)
        names = tuple(str(labels.get(str(i), '')) for i in range(len(labels)))
        if len(names) in (NUM_COCO_IDS, NUM_COCO_IDS + 1) and weights.layout.num_classes == len(COCO_IDS):
            names = COCO_CLASSES
        elif any(name.startswith('LABEL_') for name in names):  # Hugging Face's placeholders
            names = None
    if names is None and any('by COCO id' in note for note in weights.notes):
        names = COCO_CLASSES
    return names if names is not None and len(names) == weights.layout.num_classes else None


def _config_json(file: WeightsFile, coco: bool, model_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Content of Hugging Face's config.json, as defined by the family."""
    weights = file.weights
    target = weights.family.format('hf') if weights.family else None
    if target is None or target.config_json is None:
        raise CheckpointError(f'config.json of {weights.title} is not supported: choose another format.')
    names: Sequence[str] = file.classes or [f'LABEL_{i}' for i in range(weights.layout.num_classes)]
    if coco:
        by_id = dict(zip(COCO_IDS, COCO_CLASSES, strict=True))
        names = [by_id.get(i, f'N/A {i}') for i in range(NUM_COCO_IDS)]
    config = target.config_json(weights.layout, weights.state, model_cfg)
    config['id2label'] = {str(i): name for i, name in enumerate(names)}
    return {**config, 'label2id': {name: i for i, name in enumerate(names)}}
