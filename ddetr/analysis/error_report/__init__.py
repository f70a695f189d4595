"""Error report of one detector, or of two to compare: metrics of detections, and the HTML page."""

from .page import ReportOptions, write_report
from .runs import Dataset, Run, evaluate_run, read_dataset

__all__ = ['Dataset', 'ReportOptions', 'Run', 'evaluate_run', 'read_dataset', 'write_report']
