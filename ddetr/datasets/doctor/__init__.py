"""The doctor: every fault of a detection dataset in one pass.

report = examine('data/mine')          # or a config file, or splits that were read already
print(report.text())
write_html(report, 'report.html')
fix('data/mine', 'data/mine_clean')
"""

from .examination import examine
from .report import Example, Fault, Picture, Report

__all__ = ['Example', 'Fault', 'Picture', 'Report', 'examine']
