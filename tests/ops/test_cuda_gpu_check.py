"""ops/gpu_check.sh without a GPU: its tools replaced by programs that pass, fail, hang or are missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / 'ops' / 'gpu_check.sh'
PARTS = [
    'machine',
    'build',
    'tests',
    'memcheck: test_small_cases_for_the_sanitizers',
    'racecheck: test_small_cases_for_the_sanitizers',
    'synccheck: test_small_cases_for_the_sanitizers',
    'memcheck: test_merging_1030_queries_for_the_sanitizers',
    'benchmark',
]
# Reads FAIL, a word of the command line that makes it fail.
PYTHON3 = """#!/bin/bash
line="python3 $*"
if [ -n "$HANG" ] && [[ $line == *"$HANG"* ]]; then sleep 60; fi
if [ -n "$FAIL" ] && [[ $line == *"$FAIL"* ]]; then echo "fake failure of $FAIL"; exit 3; fi
case $line in
  *head.py) echo '- GPU: a fake one' ;;
  *setup.py*) [ "$NO_LIBRARY" ] || touch ddetr_ops/_C_cuda.so ;;
  *gpu_benchmark.py*) echo '| encoder | 0.123 |' ;;
esac
"""
SANITIZER = '#!/bin/bash\nif [ "$2" = "$FAIL_TOOL" ]; then exit 9; fi\nshift 4\n"$@"\n'


@pytest.fixture
def check(tmp_path):
    """Run a copy of the script with fake tools; return status, report and results of the parts."""
    (tmp_path / 'ops' / 'ddetr_ops').mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / 'ops')
    tools = tmp_path / 'tools'
    tools.mkdir()
    for name, text in (('python3', PYTHON3), ('compute-sanitizer', SANITIZER)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(**variables):
        environment = dict(os.environ, PATH=f'{tools}:/usr/bin:/bin', FAIL='', HANG='')
        environment |= variables
        done = subprocess.run(
            ['bash', str(tmp_path / 'ops' / 'gpu_check.sh')], capture_output=True, text=True, env=environment
        )
        rows = [line.split('|')[1:3] for line in done.stdout.splitlines() if line.startswith('| ')]
        results = {
            part.strip(): result.strip() for part, result in rows[-len(PARTS) :] if part.strip() != 'part'
        }
        return done.returncode, done.stdout, results

    run.tools = tools
    return run


def test_all_parts_pass(check):
    status, report, results = check()
    assert status == 0
    assert results == dict.fromkeys(PARTS, 'passed')
    assert '- GPU: a fake one' in report
    assert '| encoder | 0.123 |' in report
    assert 'Failed' not in report


@pytest.mark.parametrize(
    ('variables', 'failing'),
    [
        ({'FAIL': 'head.py'}, {'machine': 'failed (3)'}),
        ({'FAIL': '-q tests/ops/test_cuda.py'}, dict.fromkeys(['tests', *PARTS[3:7]], 'failed (3)')),
        ({'FAIL_TOOL': 'racecheck'}, {PARTS[4]: 'failed (9)'}),
        ({'FAIL': 'gpu_benchmark.py'}, {'benchmark': 'failed (3)'}),
        ({'HANG': 'gpu_benchmark.py', 'PART_SECONDS': '1'}, {'benchmark': 'failed (124)'}),
    ],
    ids=['machine', 'tests', 'sanitizer', 'benchmark', 'hanging benchmark'],
)
def test_parts_run_even_if_others_fail(check, variables, failing):
    status, report, results = check(**variables)
    assert status == 1
    assert results == dict.fromkeys(PARTS, 'passed') | failing
    for part in failing:
        assert f'## Failed: {part}' in report


def test_a_missing_sanitizer_is_a_failed_part(check):
    (check.tools / 'compute-sanitizer').unlink()
    status, _, results = check()
    assert status == 1
    assert {results[part] for part in PARTS[3:7]} == {'failed (127)'}
    assert results['benchmark'] == 'passed'


@pytest.mark.parametrize(
    'variables', [{'FAIL': 'setup.py'}, {'NO_LIBRARY': '1'}], ids=['error', 'no library']
)
def test_without_a_build_the_report_ends_with_head_and_table(check, variables):
    status, report, results = check(**variables)
    assert status == 1
    assert '- GPU: a fake one' in report
    assert results['build'].startswith('failed')
    assert 'benchmark' not in results
