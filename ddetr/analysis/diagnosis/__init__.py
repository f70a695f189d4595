"""Why does a detector not learn? Checks of a set-up, with its most likely cause first."""

from .findings import Finding, Measured, Severity
from .report import Diagnosis, diagnose, write_page

__all__ = ['Diagnosis', 'Finding', 'Measured', 'Severity', 'diagnose', 'write_page']
