"""Configuration of the documentation site (Sphinx with MyST); `bash tools/build_docs.sh` builds it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'ops'), str(HERE / '_ext')]

import ddetr  # noqa: E402  the path above

project = 'ddetr'
author = 'The ddetr authors'
copyright = f'2026, {author}'
version = release = ddetr.__version__

extensions = [
    'myst_parser',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
    'components',  # docs/_ext: the registered components by name
    'field_comments',  # docs/_ext: shapes and units of records
    'repository_links',  # docs/_ext: links out of docs/ lead to the repository
]
exclude_patterns = ['_build', '_ext']

# The pages are also read on GitHub: headings get GitHub's anchors, `page.md#heading` works in both places.
myst_heading_anchors = 4
myst_enable_extensions = ['colon_fence', 'deflist']

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = 'literal'  # docstrings write code in single backticks

html_theme = 'furo'
html_title = f'ddetr {release}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_copy_source = False
copybutton_exclude = '.linenos, .gp, .go'

# Files of the repository that a page includes.
included_files = {
    'ops/README.md': 'docs/op.md',
    'CONTRIBUTING.md': 'docs/contributing.md',
    'CHANGELOG.md': 'docs/changelog.md',
    'README.md': 'docs/index.md',
}

# Where the repository is published, as the host that builds the site says; elsewhere links to files are plain text.
if os.environ.get('GITHUB_REPOSITORY'):
    repository_url = f'{os.environ["GITHUB_SERVER_URL"]}/{os.environ["GITHUB_REPOSITORY"]}'
else:
    repository_url = os.environ.get('READTHEDOCS_GIT_CLONE_URL', '').removesuffix('.git')
if repository_url:
    html_theme_options = {
        'source_repository': repository_url,
        'source_branch': 'main',
        'source_directory': 'docs/',
    }
