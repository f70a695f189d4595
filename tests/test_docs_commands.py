"""Commands, Python blocks, paths and config names in README and docs are valid; they are parsed, not run."""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mmengine.registry import VISBACKENDS

from ddetr import registry
from ddetr.cli import main as ddetr_main
from ddetr.utils.shipped_configs import list_configs
from tests.conftest import ROOT

PAGES = sorted(
    {*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('docs/api/*'), ROOT / 'ops' / 'README.md'}
)
PAGE_IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
each_page = pytest.mark.parametrize('page', PAGES, ids=PAGE_IDS)

# Files that a reader writes or gets elsewhere, by name.
READERS_FILES = {
    'my_config.py',
    'mine.py',
    'my_backbone.py',
    'my_average.py',
    'main.py',
    'fcos.py',
    'NAME_weights.py',
}
THEIR_FILES = {'make.sh', 'run_dist_launch.sh', 'r50_deformable_detr.sh'}  # of the original Deformable DETR
# Programs of others, whose options are not ours to check.
OTHER_PROGRAMS = {
    'apt', 'auditwheel', 'build/detect', 'cat', 'cd', 'cibuildwheel', 'curl', 'docker', 'echo', 'export', 'for', 'git',
    'ls', 'make', 'mkdir', 'pip', 'sbatch', 'scancel', 'scontrol', 'sh', 'source', 'srun', 'ssh', 'time', 'torchrun',
    'unzip', 'wget',
}  # fmt: skip
OTHER_MODULES = {'build', 'pip', 'venv', 'pytest', 'torch', 'sphinx'}


class Parsed(BaseException):
    """Ends a command after its arguments were parsed; no `Exception`, so that no handler takes it."""


class Command(NamedTuple):
    """One command of a page."""

    page: Path
    words: list[str]
    in_prose: bool  # may leave out what the program requires

    def __str__(self) -> str:
        return f'{self.page.relative_to(ROOT)}: {" ".join(self.words)}'


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page, without their common indentation."""
    found = re.findall(rf'^ *```{language}\n(.*?)^ *```', page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in found]


def syntax_tree(block: str) -> ast.Module:
    """The block as Python; it may begin within the body of a method."""
    return ast.parse(
        'class Shown:\n    def method(self):\n' + textwrap.indent(block, '    ') if block[0] == ' ' else block
    )


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page's shell blocks and of code within its text."""
    for block in blocks(page, 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            yield from (Command(page, words, in_prose=False) for words in _split(line))
    prose = re.sub(r'^ *```.*?^ *```', '', page.read_text(), flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r'`((?:python|ddetr|bash|tools/|pytest)[^`]* [^`]*)`', prose)
    for code in inline:
        if not re.search(r'\.\.\.|COMMAND', code):
            words = next(_split(re.sub(r'\s+', ' ', code)))
            yield Command(page, ['python', *words] if words[0].endswith('.py') else words, in_prose=True)


def _split(line: str) -> Iterator[list[str]]:
    """The simple commands of a line; of `{a,b}` the first, of `[--option X]` the option, no environment variables."""
    line = re.sub(r'\$\(([^)]*)\)', 'VALUE', line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars='|;&')
    lexer.whitespace_split = True
    lexer.commenters = '#'
    words: list[str] = []
    for word in [*lexer, ';']:
        if re.fullmatch(r'[|;&]+', word):
            while words and re.fullmatch(r'[A-Z_a-z]+=.*|do|done|then|fi|if', words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        else:
            if re.fullmatch(r'\[-.*|[^\[=]*\]', word):
                word = word.strip('[]')
            words.append(re.sub(r'\{([^{},]*),[^{}]*\}', r'\1', word))


@contextlib.contextmanager
def only_parsing(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> Iterator[None]:
    """Let the next parser parse `argv`, and stop there; wrong arguments fail with argparse's message."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        parse_args(parser, args, namespace)
        raise Parsed

    errors = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
        patch.setattr(sys, 'argv', argv)
        try:
            yield
        except Parsed:
            return
        except SystemExit as end:
            if end.code not in (0, None):
                raise AssertionError(errors.getvalue()) from None


def parse_script(path: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of one of our Python programs."""
    script = ROOT / path
    assert script.is_file(), f'{path} does not exist'
    if 'argparse' in script.read_text() or 'run_tool' in script.read_text():
        with only_parsing(monkeypatch, [str(script), *arguments]):
            runpy.run_path(str(script), run_name='__main__')


def parse_launcher(path: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a shell script; the launchers hand what follows their own arguments to a Python program."""
    assert (ROOT / path).is_file(), f'{path} does not exist'
    forwarded = {
        'dist_train.sh': lambda: ('tools/train.py', [words[0], *words[2:]]),
        'dist_test.sh': lambda: ('tools/test.py', [*words[:2], *words[3:]]),
        'slurm_train.sh': lambda: ('tools/train.py', [words[2], '--work-dir', words[3], *words[4:]]),
        'slurm_test.sh': lambda: ('tools/test.py', words[2:]),
    }.get(Path(path).name)
    if forwarded and words:
        parse_script(*forwarded(), monkeypatch)


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless the program, its options and the files of the repository that it names exist."""
    program, *words = command.words
    if program == 'bash' and words:
        program, *words = words
    if program == 'pytest':
        program, words = 'python', ['-m', 'pytest', *words]
    if program == 'ddetr':
        with only_parsing(monkeypatch, ['ddetr', *words]):
            ddetr_main()
    elif program == 'python' and words[0] == '-m':
        assert words[1] in OTHER_MODULES or importlib.util.find_spec(words[1]), f'no module {words[1]}'
    elif program == 'python' and words[0].endswith('.py') and words[0] not in READERS_FILES:
        parse_script(words[0], words[1:], monkeypatch)
    elif program.endswith('.sh') and '/' in program:
        parse_launcher(program.removeprefix('./'), words, monkeypatch)
    elif program != 'python':
        assert program in OTHER_PROGRAMS, f'{program} is no program that the docs may use'
    for word in command.words:
        path = word.split('::')[0]
        if re.match(r'(configs|tests|tools|ops|demo|requirements)/[\w./*-]+$', path) and '/dist/' not in path:
            assert list(ROOT.glob(path)), f'{path} does not exist'


@each_page
def test_commands_parse(page, monkeypatch):
    faults = []
    for command in commands(page):
        try:
            check(command, monkeypatch)
        except (AssertionError, IndexError) as fault:
            if not (command.in_prose and re.search('are required|expected .* argument', str(fault))):
                faults.append(f'{command}\n    {fault}')
    assert not faults, '\n'.join(faults)


def known_types(trees: list[ast.Module]) -> set[str]:
    """Every name that a config may give as `type`: registered, or a class of the page itself."""
    names = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for value in [*vars(registry).values(), VISBACKENDS]:
        if isinstance(value, registry.Registry):
            value.import_from_location()
            while value is not None:
                names.update(value.module_dict)
                value = value.parent
    return names


def check_imports(tree: ast.Module) -> dict[str, object]:
    """Import what a block imports from ddetr and ddetr_ops; AttributeError or ImportError for what is not there."""
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in ('ddetr', 'ddetr_ops'):
            for alias in node.names:
                module = importlib.import_module(node.module or '')
                if not hasattr(module, alias.name):
                    importlib.import_module(f'{node.module}.{alias.name}')
                imported[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] in ('ddetr', 'ddetr_ops'):
                    importlib.import_module(alias.name)
    return imported


def unknown_keywords(tree: ast.Module, imported: dict[str, object]) -> list[str]:
    """Keywords that our imported functions and classes do not take."""
    faults = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and callable(imported.get(node.func.id))
        ):
            parameters = inspect.signature(imported[node.func.id]).parameters  # type: ignore[arg-type]
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                faults += [
                    f'{node.func.id}({word.arg}=...)'
                    for word in node.keywords
                    if word.arg and word.arg not in parameters
                ]
    return faults


@each_page
def test_python_blocks_compile_and_name_what_exists(page):
    trees = [syntax_tree(block) for block in blocks(page, 'python')]
    imported: dict[str, object] = {}
    types = known_types(trees) | types_of_the_example() if trees else set()
    for tree in trees:
        imported |= check_imports(tree)
        assert not unknown_keywords(tree, imported)
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == 'type' and isinstance(node.value, ast.Constant):
                assert node.value.value in types, f"type='{node.value.value}' is not registered"


def types_of_the_example() -> set[str]:
    """Classes of the detector that docs/add_a_detector.md walks through."""
    tree = ast.parse((ROOT / 'tests' / 'own_detector' / 'grid_detector.py').read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} | {
        'MyAverage',
        'TwoLevels',
    }


def repository_names() -> set[str]:
    """Names of all files and folders of the repository."""
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    files = listed.stdout.split() or [
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob('*') if path.is_file()
    ]
    return {part for file in files for part in Path(file).parts}


@each_page
def test_files_and_configs_named_in_the_text_exist(page):
    names, configs, faults = repository_names(), list_configs(), []
    if page.name == 'CHANGELOG.md':
        return  # names what was removed
    for code in re.findall(r'`([^`\n]+)`', page.read_text()):
        for path in re.findall(r'(?<![\w/.<{*-])([\w{},*./-]+\.(?:py|sh|md))\b(?!\.)', code):
            for alternative in expand(path):
                name = Path(alternative).name
                if '*' not in name and name not in names | READERS_FILES | THEIR_FILES:
                    faults.append(alternative)
        if re.fullmatch(r'[\w{},-]+_(coco|shapes|bccd|finetune)', code):
            faults += [name for name in expand(code) if name not in configs]
    assert not faults


def expand(text: str) -> list[str]:
    """The shell's brace expansion."""
    match = re.search(r'\{([^{}]*)\}', text)
    if match is None:
        return [text]
    return [
        word
        for part in match[1].split(',')
        for word in expand(text[: match.start()] + part + text[match.end() :])
    ]


def test_totals_in_tables_of_mmdetection_configs_are_correct():
    page = (ROOT / 'docs' / 'migration.md').read_text()
    tested = len(re.findall(r'^\| \S+/\S+ \| yes \| yes \| yes \|', page, flags=re.MULTILINE))
    rows = len(
        re.findall(r'^\| \S+/\S+ \| (?:yes|no) \| (?:yes|no) \| (?:yes|no) \|', page, flags=re.MULTILINE)
    )
    assert f'{tested} of {rows} configs were built' in page
    assert f'{tested} of {rows} configs' in (ROOT / 'README.md').read_text()


def test_model_diagrams_are_those_of_the_script(tmp_path):
    subprocess.run([sys.executable, ROOT / 'docs' / 'draw_diagrams.py', tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in (ROOT / 'docs' / 'images' / 'models').iterdir()}
