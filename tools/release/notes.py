"""Check that all files have the same release version, extract its changelog section, and print the version.

python tools/release/notes.py ROOT OUT: ROOT is the source tree, OUT the output file. Needs only the standard library.
"""

import argparse
import re
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', type=Path, help='source tree')
    parser.add_argument('out', type=Path, help='output file for the release notes')
    args = parser.parse_args()
    version = _find(args.root / 'ddetr/__init__.py', r"^__version__ = '(.+)'")
    cited = _find(args.root / 'CITATION.cff', r"^version: '?([^'\n]+)'?")
    if cited != version:
        raise SystemExit(f'error: CITATION.cff has version {cited}, but ddetr/__init__.py has {version}.')
    args.out.write_text(release_notes((args.root / 'CHANGELOG.md').read_text(), version))
    print(version)


def release_notes(changelog: str, version: str) -> str:
    """Extract the changelog section of a version, without its heading.

    Raises:
        SystemExit: The section is missing or empty.
    """
    sections = re.split(r'^## ', changelog, flags=re.M)
    for section in sections[1:]:
        heading, _, notes = section.partition('\n')
        if heading.split()[0] == version and notes.strip():
            return notes.strip() + '\n'
    raise SystemExit(f'error: CHANGELOG.md has no notes under the heading `## {version}`.')


def _find(path: Path, pattern: str) -> str:
    found = re.search(pattern, path.read_text(), flags=re.M)
    if found is None:
        raise SystemExit(f'error: {path.name} contains no version.')
    return found[1]


if __name__ == '__main__':
    main()
