"""Dataset doctor: find all faults of a detection dataset in one pass.

report = examine('data/mine')
print(report.text())
write_html(report, 'report.html')
fix(report, 'data/mine_clean')
"""

from .examination import examine
from .faults import Example, Fault, Picture
from .html import write_html
from .plugins import to_fiftyone
from .repair import fix
from .report import Report

__all__ = ['Example', 'Fault', 'Picture', 'Report', 'examine', 'fix', 'to_fiftyone', 'write_html']
