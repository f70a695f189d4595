"""Naming conventions of Hugging Face transformers, shared by all models.

`save_pretrained` writes the names of version 4, which every version reads. Modules of version 5 have different names,
and the backbone uses those of timm (equal to torchvision's) or of Hugging Face's own ResNet. All are supported.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .rules import Rule


class Style(NamedTuple):
    """Variant of Hugging Face names in a file."""

    version_5: bool = False
    hf_resnet: bool = False


AS_PUBLISHED = Style()


def style_of(names: Mapping[str, Any]) -> Style:
    """Detect the style of these names."""
    return Style(
        version_5=any('.mlp.fc1.' in name for name in names),
        hf_resnet=any('.embedder.embedder.' in name for name in names),
    )


def in_both_versions(table: Sequence[Rule], style: Style) -> tuple[Rule, ...]:
    """Extend a table of version 4 names with those of version 5; the style decides which are written."""
    new = [Rule(_version_5_name(r.theirs), r.ours, r.written and style.version_5) for r in table]
    return (*new, *(rule._replace(written=rule.written and not style.version_5) for rule in table))


def _version_5_name(theirs: str) -> str:
    name = theirs.replace('.backbone.conv_encoder.', '.backbone.')
    name = name.replace('.fc1.', '.mlp.fc1.').replace('.fc2.', '.mlp.fc2.')
    return name.replace('.out_proj.', '.o_proj.')
