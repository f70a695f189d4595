"""Description of the weights of a detector or backbone: its class attribute `weight_family`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddetr.registry import MODELS

from .classes import Background, ClassRows
from .huggingface import Style
from .layout import Layout
from .rules import Rule, State, matches_any

# Facts by name that tensors do not reveal, but a live model, a file's metadata or another project's names do.
Hints = Mapping[str, Any]


class OptionalZeros(NamedTuple):
    """Biases that some projects omit; missing ones are 0."""

    title: str = ''  # such as 'biases of the neck'
    templates: tuple[str, ...] = ()
    config_key: str = ''  # config override that enables them, such as 'model.neck.bias=True'


NO_ZEROS = OptionalZeros()


@dataclass(frozen=True)
class WeightFormat:
    """Format of a family in another project."""

    # `original`, `mmdet`, `hf`, or another name; `convert_weights.py --to` offers these three
    project: str
    title: str  # human-readable name
    # Rename table for a layout. None: the project uses ddetr's names and class rows (MMDetection), stores batch norm
    # counters, and omits optional zero tensors.
    rules: Callable[[Any, Style], Sequence[Rule]] | None = None
    landmarks: tuple[str, ...] = ()  # names in the other project that together occur in no other format
    # infers the layout from the other project's tensors, as far as `rules` and the hints need it
    layout_from_theirs: Callable[[State], Layout] = lambda state: Layout()
    background: Background = 'none'  # position of the "no object" row in the other project
    # adds copies of shared tensors, which the other project stores once
    complete: Callable[[State, Any], State] = lambda state, layout: state
    # the inverse; raises CheckpointError if the project does not support the variant
    reduce: Callable[[State, Any], State] = lambda state, layout: state
    # (layout, state with ddetr names, ddetr `model` config or None) -> Hugging Face config.json without class names
    config_json: Callable[[Any, State, Mapping[str, Any] | None], dict[str, Any]] | None = None


@dataclass(frozen=True)
class WeightFamily:
    """Description of the weights of a detector or backbone. Names are ddetr's unless stated otherwise."""

    name: str  # human-readable name
    landmarks: tuple[
        str, ...
    ]  # names that together identify the family; if several families match, the one with the most wins
    layout_of: Callable[[State, Hints], Layout]
    # Facts of the layout that tensors may not reveal, taken from attributes of a live model and from fields of
    # `WeightFormat.layout_from_theirs`, and stored in ddetr files.
    hints: tuple[str, ...] = ()
    formats: tuple[WeightFormat, ...] = ()  # formats of other projects
    class_rows: tuple[ClassRows, ...] = ()  # tensors with rows for classes
    # layout -> prefix of the class branch whose row 0 means "any object" in every project; '' without one
    proposal_branch: Callable[[Any], str] = lambda layout: ''
    stacks: tuple[
        str, ...
    ] = ()  # prefixes, ending in a dot, of module lists whose members have the same names
    optional_zeros: OptionalZeros = NO_ZEROS
    part_of_detector: str = ''  # for backbones: prefix of their names in a detector, such as `backbone.`

    def format(self, project: str) -> WeightFormat | None:
        """Format of the family in `project`, if there is one."""
        return next((format for format in self.formats if format.project == project), None)

    def zeros_in(self, names: Iterable[str]) -> list[str]:
        """Optional zero tensors that are present."""
        return [name for name in names if matches_any(name, self.optional_zeros.templates)]

    def hints_from(self, source: object) -> dict[str, Any]:
        """Hints from a model or a layout."""
        return {name: getattr(source, name) for name in self.hints if hasattr(source, name)}


def family_of(model: object) -> WeightFamily | None:
    """Family of a model or class, if it has one."""
    return getattr(model, 'weight_family', None)


def known_families() -> list[WeightFamily]:
    """Families of all registered models, including user-defined ones whose modules are imported."""
    MODELS.import_from_location()
    found = {id(family): family for model in MODELS.module_dict.values() if (family := family_of(model))}
    return list(found.values())


def recognise(
    state: Mapping[str, Any], *more: WeightFamily
) -> tuple[WeightFamily, WeightFormat | None] | None:
    """Find the family (registered or in `more`) and format (None: ddetr names) whose landmarks are all present.

    If several match, the one with the most landmarks is chosen.
    """
    candidates: list[tuple[int, WeightFamily, WeightFormat | None]] = []
    for family in [*more, *known_families()]:
        for format in (None, *family.formats):
            landmarks = family.landmarks if format is None else format.landmarks
            if (format is None or landmarks) and all(name in state for name in landmarks):
                candidates.append((len(landmarks), family, format))
    return max(candidates, key=lambda candidate: candidate[0])[1:] if candidates else None
