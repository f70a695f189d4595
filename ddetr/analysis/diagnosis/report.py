"""Run all checks of a training setup and report the ordered findings as text and as a page with pictures."""

import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config

from ddetr.analysis.browsing import write_pictures
from ddetr.analysis.examples import quiet
from ddetr.utils.errors import BoxUnitsError, CheckpointError, InputError
from ddetr.utils.files import write_atomically

from .boxes import check_boxes
from .classes import check_confusion, check_names
from .findings import Check, Finding, Measured, Severity, Unchecked
from .labels import check_contents, check_mapping
from .normalisation import check_normalisation
from .pretraining import check_weights
from .subject import Subject
from .training import check_training

PICTURES = 24  # shown on the page
# In the order of reporting: wrong boxes explain unlearnable labels, and wrong labels explain a high loss.
CHECKS = (
    Check('class names', check_names),
    Check('boxes', check_boxes),
    Check('weights', check_weights),
    Check('normalisation', check_normalisation),
    Check('contents of the boxes', check_contents),
    Check('classes of both splits', check_mapping),
    Check('trained classes', check_confusion),
    Check('learning rate and overfitting', check_training),
)
# Checks that are meaningless once another check has found a cause, such as crops of wrong boxes.
EXPLAINS = {
    'class names': {check_mapping, check_confusion},
    'boxes': {check_contents, check_mapping, check_confusion},
}


class Done(NamedTuple):
    """Result of a check that was run or skipped."""

    title: str
    measured: Measured
    seconds: float
    unchecked: str = ''  # reason for skipping it


class Diagnosis(NamedTuple):
    """Results of all checks."""

    done: tuple[Done, ...]

    @property
    def findings(self) -> list[Finding]:
        """All findings, most likely cause first."""
        found = [finding for done in self.done for finding in done.measured.findings]
        return sorted(found, key=lambda finding: finding.severity)  # stable: the order of the checks

    @property
    def causes(self) -> list[Finding]:
        """Findings that prevent a detector from learning on their own."""
        return [finding for finding in self.findings if finding.severity is Severity.CAUSE]

    def __str__(self) -> str:
        return '\n'.join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.causes:
            yield f'LIKELY CAUSE: {self.causes[0].title}'
            yield from _explained(self.causes[0])
        else:
            yield 'NO CAUSE FOUND: data, weights, normalisation, classes and learning rate look right.'
        for finding in self.findings[bool(self.causes) :]:
            yield f'\n{"possible cause" if finding.severity is Severity.CAUSE else "note"}: {finding.title}'
            yield from _explained(finding)
        if len(self.done) < len(CHECKS):
            yield '\nFix it and run this again: dependent checks were skipped.'
        yield '\nMeasurements:'
        for done in self.done:
            mark = '--' if done.unchecked else '!!' if done.measured.findings else 'ok'
            yield f'  [{mark}] {done.title} ({done.seconds:.0f} s)'
            for fact in (done.unchecked and f'not checked: {done.unchecked}', *done.measured.facts):
                if fact:
                    yield f'       {fact}'


def _explained(finding: Finding) -> list[str]:
    return [f'  evidence: {finding.evidence}', f'  cure: {finding.cure}']


def diagnose(
    cfg: Config, checkpoint: str | None = None, tell: Callable[[str], None] = lambda line: None
) -> tuple[Diagnosis, Subject]:
    """Run all checks of a training setup.

    Args:
        cfg: Config with its options applied.
        checkpoint: Trained weights to check as well.
        tell: Callback that receives a progress line before each check.
    """
    subject = Subject(cfg, checkpoint)
    with quiet():
        return Diagnosis(tuple(_run(subject, tell))), subject


def _run(subject: Subject, tell: Callable[[str], None]) -> Iterator[Done]:
    start = time.perf_counter()
    if (fault := _fault_of_building(subject)) is not None:
        yield Done('set-up', Measured((), (fault,)), time.perf_counter() - start)
        return
    explained: set[Callable[..., Measured]] = set()
    for check in CHECKS:
        if check.run in explained:
            continue
        tell(f'checking {check.title} ...')
        start = time.perf_counter()
        try:
            measured, unchecked = check.run(subject), ''
        except Unchecked as reason:
            measured, unchecked = Measured(()), str(reason)
        yield Done(check.title, measured, time.perf_counter() - start, unchecked)
        if any(finding.severity is Severity.CAUSE for finding in measured.findings):
            # skip it: it takes most of the time, and the loss would add nothing to the known cause
            explained |= {check_training, *EXPLAINS.get(check.title, ())}


def _fault_of_building(subject: Subject) -> Finding | None:
    """Return the error that prevents the setup from being built, as training would report it."""
    steps: Sequence[tuple[str, Callable[[], object]]] = (
        ('data', lambda: (subject.train, subject.val)),
        ('data', lambda: subject.examples),
        ('model', lambda: subject.model),
    )
    for name, build in steps:
        try:
            build()
        except InputError as error:
            if isinstance(error, CheckpointError):
                name = 'weights'
            elif isinstance(error, BoxUnitsError):
                name = 'boxes'
            return _unbuilt(name, str(error))
    return None


def _unbuilt(name: str, sentence: str) -> Finding:
    if name in ('data', 'model') and ('categor' in sentence or 'classes' in sentence):
        title = 'the class mapping is wrong: the classes of the config are not those of the annotation file'
        return Finding('classes', title, sentence, 'correct what the sentence names.')
    return Finding(name, _UNBUILT[name], sentence, 'correct what the sentence names.')


_UNBUILT = {
    'boxes': 'the boxes are in other units or another order than their format says',
    'data': 'the data cannot be read',
    'model': 'the model cannot be built',
    'weights': 'the pretrained weights are not loaded: their file cannot be taken',
}


def write_page(diagnosis: Diagnosis, subject: Subject, folder: Path) -> Path:
    """Write `diagnosis.html` into `folder`, with pictures of the training images as the model sees them."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = ''
    if not any(done.title == 'set-up' for done in diagnosis.done):
        chosen = subject.examples[:: max(1, len(subject.examples) // PICTURES)][:PICTURES]
        sheets = write_pictures(chosen, subject.classes, folder)
        pictures = '\n'.join(f'<img src="{escape(sheet.name)}">' for sheet in sheets)
    text = _PAGE.format(report=escape(str(diagnosis)), pictures=pictures)
    path = folder / 'diagnosis.html'
    write_atomically(path, lambda unfinished: unfinished.write_text(text))
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Diagnosis</title>
<style>body {{ font-family: sans-serif; margin: 2em }} pre {{ white-space: pre-wrap }} img {{ max-width: 100% }}</style>
</head><body><h1>Diagnosis</h1><pre>{report}</pre>
<h2>Training images as the model sees them</h2>{pictures}</body></html>
"""
