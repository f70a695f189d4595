"""The files around the code: packages, workflows, issue forms, the fast tier. No network."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import ddetr_ops
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import ddetr
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    from setuptools.compat.py310 import tomllib

NO_EXTRAS = {
    'build',
    'constraints',
    'docs',
    'op',
    'optional',
    'release',
    'runtime',
    'tests',
}  # of requirements/*.txt
SCHEMAS = {
    'github-workflows': '.github/workflows/*.yml',
    'github-issue-forms': '.github/ISSUE_TEMPLATE/[!c]*.yml',
    'github-issue-config': '.github/ISSUE_TEMPLATE/config.yml',
    'citation-file-format': 'CITATION.cff',
}
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
BUILD = 'from setuptools import build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})'


@pytest.fixture(scope='module')
def artefacts(tmp_path_factory):
    """The wheel and the source distribution of ddetr, built from a copy of what they are made of."""
    folder = tmp_path_factory.mktemp('artefacts')
    source, out = folder / 'source', folder / 'out'
    source.mkdir()
    for name in (
        'ddetr',
        'configs',
        'requirements',
        'README.md',
        'LICENSE',
        'MANIFEST.in',
        'pyproject.toml',
        'setup.py',
    ):
        (source / name).symlink_to(ROOT / name)
    out.mkdir()
    subprocess.run(
        [sys.executable, '-c', BUILD.format(str(out))],
        cwd=source,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return next(out.glob('*.whl')), next(out.glob('*.tar.gz'))


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_has_everything_that_runs_without_the_repository(artefacts):
    wheel, sdist = artefacts
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'ddetr').rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    configs = {f'ddetr/{path.relative_to(ROOT).as_posix()}' for path in (ROOT / 'configs').rglob('*.py')}
    assert {name for name in names if '.dist-info/' not in name} == files | configs
    assert 'ddetr/py.typed' in names
    with tarfile.open(sdist) as archive:
        packed = {name.partition('/')[2] for name in archive.getnames()}
    assert {
        'setup.py',
        'pyproject.toml',
        'requirements/runtime.txt',
        'configs/_base_/default_runtime.py',
    } <= packed


def test_the_two_packages_fit_each_other(artefacts):
    metadata = metadata_of(artefacts[0])
    assert metadata['Version'] == ddetr.__version__
    needed = {r.name: r for r in map(Requirement, metadata.get_all('Requires-Dist'))}
    assert Version(ddetr_ops.__version__) in needed['ddetr-ops'].specifier
    assert Version('2.0') not in needed['ddetr-ops'].specifier
    ops = tomllib.loads((ROOT / 'ops/pyproject.toml').read_text())
    assert ops['project']['requires-python'] == metadata['Requires-Python']
    assert needed['torch'].specifier == Requirement(ops['project']['dependencies'][0]).specifier


def requirements_in(name):
    lines = (ROOT / 'requirements' / name).read_text().splitlines()
    return [line.split(' #')[0].strip() for line in lines if line and not line.startswith('#')]


def test_each_optional_requirements_file_is_an_extra_and_part_of_all(artefacts):
    files = {path.stem for path in (ROOT / 'requirements').glob('*.txt')} - NO_EXTRAS
    assert set(requirements_in('optional.txt')) == {f'-r {name}.txt' for name in files}
    metadata = metadata_of(artefacts[0])
    assert set(metadata.get_all('Provides-Extra')) == files | {'all'}
    offered = {extra: set() for extra in files | {'all'}}
    for requirement in map(Requirement, metadata.get_all('Requires-Dist')):
        for extra in offered:
            if requirement.marker and requirement.marker.evaluate({'extra': extra}):
                offered[extra].add(requirement.name)
    for name in files:
        own = {Requirement(line).name for line in requirements_in(f'{name}.txt') if not line.startswith('-r')}
        assert own <= offered[name]
        assert own <= offered['all']


def test_release_notes_equal_the_changelog_section_of_the_version(tmp_path):
    notes = tmp_path / 'notes.md'
    command = [sys.executable, 'tools/release/notes.py']
    done = subprocess.run([*command, '.', notes], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ddetr.__version__
    assert notes.read_text().strip() in (ROOT / 'CHANGELOG.md').read_text()
    for folder in ('ddetr', 'CITATION.cff', 'CHANGELOG.md'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / 'CITATION.cff').unlink()
    (tmp_path / 'CITATION.cff').write_text('version: 9.9.9\n')
    done = subprocess.run([*command, tmp_path, notes], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'CITATION.cff has version 9.9.9' in done.stderr


def check_schema(name, *paths):
    return subprocess.run(
        [sys.executable, '-m', 'check_jsonschema', '--builtin-schema', f'vendor.{name}', *paths],
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(('schema', 'pattern'), SCHEMAS.items())
def test_files_for_github_follow_their_schemas(schema, pattern):
    pytest.importorskip('check_jsonschema')
    paths = sorted(ROOT.glob(pattern))
    assert paths
    done = check_schema(schema, *paths)
    assert done.returncode == 0, done.stdout


def test_the_schema_check_can_fail(tmp_path):
    pytest.importorskip('check_jsonschema')
    workflow = tmp_path / 'tests.yml'
    workflow.write_text((ROOT / '.github/workflows/tests.yml').read_text().replace('runs-on:', 'run-on:'))
    done = check_schema('github-workflows', workflow)
    assert done.returncode == 1
    assert 'run-on' in done.stdout


def test_workflows_reference_existing_files():
    text = ''.join(path.read_text() for path in (ROOT / '.github/workflows').glob('*.yml'))
    scripts = set(re.findall(r'bash ([\w./]+)', text))
    assert {'tools/install.sh', 'tools/run_tests.sh', 'tools/release/build.sh', '.ci/run'} <= scripts
    for path in scripts | set(re.findall(r'-r (requirements/\w+\.txt)', text)):
        assert (ROOT / path).is_file(), path


def test_every_folder_of_tests_is_in_the_fast_tier():
    lines = (ROOT / 'tests/fast_tier.txt').read_text().splitlines()
    entries = [line.partition('::') for line in lines if not line.startswith('#')]
    for path, _, name in entries:
        assert f'def {name}(' in (ROOT / path).read_text() if name else (ROOT / path).is_file(), path
    covered = {Path(path).parent.as_posix() for path, *_ in entries}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / 'tests').rglob('test_*.py')}
    assert folders - covered == {'tests/cluster'}


def test_the_public_api_is_checked_strictly():
    overrides = PROJECT['tool']['mypy']['overrides']
    strict = next(o for o in overrides if o.get('disallow_untyped_defs'))
    assert set(strict['module']) == {'ddetr.apis.*', 'ddetr.structures.*', 'ddetr_ops.*'}
    assert (ROOT / 'ddetr/py.typed').is_file()
    assert (ROOT / 'ops/ddetr_ops/py.typed').is_file()
