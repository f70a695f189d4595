"""Sphinx extension: relative links that leave docs/ lead to the repository, or to the page that includes the file."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

LINK = re.compile(r'(?<!!)\[([^\]]*)\]\(((?!\w+:|#)[^)#\s]+)(#[^)\s]*)?\)')


def on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links of a page in docs/."""
    source[0] = relinked(app, source[0], Path(app.srcdir, docname).parent, docname)


def on_include(app: Sphinx, relative_path: Path, parent_docname: str, content: list[str]) -> None:
    """Links of an included file, which are relative to that file."""
    content[0] = relinked(app, content[0], Path(app.srcdir, relative_path).resolve().parent, parent_docname)


def relinked(app: Sphinx, text: str, folder: Path, docname: str) -> str:
    """The text with its relative links changed; one to a file that does not exist stays, and fails the build."""
    docs = Path(app.srcdir)

    def link(match: re.Match[str]) -> str:
        label, anchor = match[1], match[3] or ''
        target = folder.joinpath(match[2]).resolve()
        if not target.exists() or not target.is_relative_to(docs.parent):
            return match[0]
        name = target.relative_to(docs.parent).as_posix()
        page = app.config.included_files.get(name) or (name if target.is_relative_to(docs) else None)
        if page:
            here = Path(docs, docname).parent
            return f'[{label}]({os.path.relpath(docs.parent / page, here)}{anchor})'
        if not app.config.repository_url:
            return label
        kind = 'tree' if target.is_dir() else 'blob'
        return f'[{label}]({app.config.repository_url}/{kind}/main/{name}{anchor})'

    return LINK.sub(link, text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_config_value('repository_url', '', 'env')
    app.add_config_value('included_files', {}, 'env')  # file of the repository -> page that includes it
    app.connect('source-read', on_source)
    app.connect('include-read', on_include)
    return {'parallel_read_safe': True}
