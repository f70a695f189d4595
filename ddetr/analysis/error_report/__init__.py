"""An error report of one detector or two: what is measured of detections, and the page that shows it."""

from .page import ReportOptions, write_report
from .runs import Dataset, Run, evaluate_run, read_dataset

__all__ = ['Dataset', 'ReportOptions', 'Run', 'evaluate_run', 'read_dataset', 'write_report']
