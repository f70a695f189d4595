"""Metadata of PyTorch's .pt2 archives, which are zip files."""

import zipfile
from pathlib import Path

from ddetr.deployment.info import METADATA_KEY, ExportInfo


def annotate(path: Path, info: ExportInfo) -> None:
    """Write `info` where `torch.export.load(..., extra_files=...)` reads it, replacing any existing entry."""
    unfinished = path.with_name(f'{path.name}.annotated')
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(unfinished, 'w', zipfile.ZIP_STORED) as out:
        root = source.namelist()[0].split('/')[0]
        place = f'{root}/extra/{METADATA_KEY}'
        for entry in source.infolist():
            if entry.filename != place:
                out.writestr(entry.filename, source.read(entry))
        out.writestr(place, info.to_json())
    unfinished.replace(path)
