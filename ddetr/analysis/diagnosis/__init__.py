"""Diagnosis of detectors that do not learn: checks of the training setup, most likely cause first."""

from .findings import Finding, Measured, Severity
from .report import Diagnosis, diagnose, write_page

__all__ = ['Diagnosis', 'Finding', 'Measured', 'Severity', 'diagnose', 'write_page']
