"""What a person looks at afterwards: the report of one run, or of several side by side.

Belongs here: reading run folders, charts and their captions, the page. Does not belong here: measuring during training (`training/`),
evaluation itself (`rollouts/`), intervals and smoothing (`statistics.py`), comparison of estimators (`lab/`).
"""

from unipg.reports.html import write_report
from unipg.reports.run import Run, read_run

__all__ = ["Run", "read_run", "write_report"]
